"""The settings of Ray's memory monitor, as the raylet of the driver's node has them."""

from __future__ import annotations

import os
from collections.abc import Mapping

import psutil

from ray_tune_memguard.cluster.gcs import ClusterStateError, system_config
from ray_tune_memguard.cluster.settings import Value, effective, given_in
from ray_tune_memguard.system.node_memory import MonitorSettings


def monitor_settings(raylet_pid: int | None = None) -> MonitorSettings:
    """The settings that hold for the driver's node.

    Args:
        raylet_pid: the raylet's process, whose environment counts. With None, or if it cannot be
            read, the driver's counts.
    """
    try:
        given = system_config()
    except ClusterStateError:
        given = {}
    return settings_from(given, given_in(dict(_environment(raylet_pid))))


def settings_from(system_config: dict[str, object], given: dict[str, str]) -> MonitorSettings:
    """The settings by what the head was started with and by environment variables.

    Args:
        system_config: what the head was started with.
        given: the settings in the environment of the raylet, by name.

    Examples:
        >>> settings_from({}, {"memory_usage_threshold": "0.8"}).threshold
        0.8
    """

    def value(name: str) -> Value:
        return effective(name, system_config, given)

    return MonitorSettings(
        is_on=value("memory_monitor_refresh_ms") > 0,
        threshold=float(value("memory_usage_threshold")),
        min_free_bytes=int(value("min_memory_free_bytes")),
        counts_swap=bool(value("count_swap_in_memory_monitor")),
    )


def _environment(pid: int | None) -> Mapping[str, str]:
    if pid is not None:
        try:
            found: dict[str, str] = psutil.Process(pid).environ()
            return found
        except psutil.Error:
            pass
    return os.environ
