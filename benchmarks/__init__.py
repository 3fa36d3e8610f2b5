"""Benchmarks of MemGuard against Ray alone and what its users can do today.

``python -m benchmarks NAME``; ``python -m benchmarks --help`` says which there are. All rivals
(``rivals``) run the same sweep in the same command, taking turns, each in a fresh process, and are
measured by the same callback (``probes``), which belongs to the benchmarks and not to MemGuard.

``suite`` says what each benchmark runs, what it reads from the runs, and its bars. The simulated
actor layer (``simulated``) swaps ``RayActorManager`` and nothing else; ``agreement`` shows that its
slopes are those of real actors.
"""
