"""Benchmarks of MemGuard against Ray alone: ``python -m benchmarks NAME``.

Both rivals run the same sweep in the same command, taking turns, each in a fresh process, and are
measured by the same callback, which belongs to the benchmarks and not to MemGuard.
"""
