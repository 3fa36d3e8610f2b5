"""Benchmarks of MemGuard against Ray alone and what its users can do today.

``python -m benchmarks NAME``; ``python -m benchmarks --help`` says which there are.

- ``scenarios``: the table of what runs, which baselines, which size, metrics and thresholds;
- ``metrics``: from a run's record to a number;
- ``measures``: from a job to a record, by way of child programs;
- ``children``: their functions, each of which runs in a fresh process;
- ``runner``: runs a scenario, the baselines taking turns;
- ``rows`` and ``report``: the table, the JSON file and the picture.

The simulated actor layer (``simulated``) swaps ``RayActorManager`` and nothing else.
"""
