"""Starts a small Ray of this process's own, which says nothing."""

from __future__ import annotations


def start_ray(num_cpus: int, **options: int) -> None:
    """Start it, after whatever the process has set in its environment.

    Args:
        num_cpus: of the cluster.
        options: more arguments of ``ray.init``.
    """
    import ray

    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        **options,
    )
