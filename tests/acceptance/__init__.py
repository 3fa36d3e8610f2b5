"""What must hold in real sweeps at full size: ``python -m tests.acceptance NAME``.

Each command ends with 1 if it does not hold. ``test_*.py`` are the same in small, for pytest.
"""
