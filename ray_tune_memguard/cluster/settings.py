"""Ray's settings that decide about memory: names, defaults by version of Ray, and who reads them.

Ray calls them ``RAY_CONFIG``. A setting comes from the ``_system_config`` that the head was started
with, which every node gets; otherwise from the environment variable ``RAY_<name>`` of the process
that reads it; otherwise it is the default. Names are checked against Ray's binaries by a test; the
defaults are those of Ray's ``ray_config_def.h``.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeAlias

Value: TypeAlias = "bool | int | float"
Version: TypeAlias = "tuple[int, int]"

#: The first and the last version of Ray whose settings this table is known to describe.
OLDEST_KNOWN: Version = (2, 50)
NEWEST_KNOWN: Version = (2, 60)
ENVIRONMENT_PREFIX = "RAY_"
_TRUE = ("1", "true")
#: What `task_events_max_num_task_in_gcs` counts of a trial of Tune (measured).
TASKS_PER_TRIAL = 5
#: Variables that look like settings, and that only Ray's Python reads (some from 2.55 or 2.60 on).
_READ_IN_PYTHON = frozenset(
    {
        "allow_out_of_band_object_ref_serialization",
        "gcs_server_port_wait_time_s",
        "rdt_fetch_fail_timeout_milliseconds",
    }
)


class Reader(Enum):
    """The processes that read a setting. As an environment variable it must be set for them."""

    HEAD = "gcs_server on the head"
    NODES = "the raylet of every node"
    EVERYWHERE = "every process: gcs_server, raylets, workers and the driver"


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: Ray's name.
        default: Ray's default value.
        reader: who reads it.
        says: what it says, in words.
        since: the first version of Ray that has it; the oldest supported version if earlier.
    """

    name: str
    default: Value
    reader: Reader
    says: str
    since: Version = OLDEST_KNOWN

    def parse(self, text: str) -> Value | None:
        """The value of an environment variable; None if it is not one."""
        if isinstance(self.default, bool):
            return text.strip().lower() in _TRUE
        try:
            return type(self.default)(text)
        except ValueError:
            return None


_GIB = 2**30

SETTINGS: tuple[Setting, ...] = (
    # Idle workers.
    Setting(
        "kill_idle_workers_interval_ms",
        200,
        Reader.NODES,
        "ms between two looks for idle workers to end; 0 means never",
    ),
    Setting(
        "num_workers_soft_limit",
        -1,
        Reader.NODES,
        "idle workers that a node keeps; -1 means as many as it has CPUs that are not in use",
    ),
    Setting(
        "idle_worker_killing_time_threshold_ms",
        1000,
        Reader.NODES,
        "ms after which an idle worker above the limit is asked to exit",
    ),
    Setting(
        "idle_worker_killing_memory_threshold_bytes",
        _GIB,
        Reader.NODES,
        "bytes above which the memory monitor may kill an idle worker that has not run anything",
        since=(2, 55),
    ),
    # The memory monitor.
    Setting(
        "memory_monitor_refresh_ms",
        250,
        Reader.NODES,
        "ms between two measurements of the memory monitor; 0 turns it off",
    ),
    Setting(
        "memory_usage_threshold",
        0.95,
        Reader.NODES,
        "used share of the memory above which the monitor kills workers",
    ),
    Setting(
        "min_memory_free_bytes",
        -1,
        Reader.NODES,
        "bytes that must be free for the monitor to kill nothing; -1 means any number",
    ),
    Setting(
        "count_swap_in_memory_monitor",
        False,
        Reader.NODES,
        "whether swap counts as memory for the monitor",
        since=(2, 60),
    ),
    Setting(
        "max_kill_memory_buffer_bytes",
        3 * _GIB,
        Reader.NODES,
        "bytes that the monitor frees below its threshold, at most",
        since=(2, 56),
    ),
    Setting(
        "worker_killing_policy_by_group",
        False,
        Reader.NODES,
        "whether the monitor uses the policy of Ray before 2.56",
        since=(2, 56),
    ),
    # What gcs_server keeps.
    Setting(
        "task_events_report_interval_ms",
        1000,
        Reader.EVERYWHERE,
        "ms between two reports of task events to gcs_server; 0 means none",
    ),
    Setting(
        "task_events_max_num_task_in_gcs",
        100_000,
        Reader.HEAD,
        "tasks whose events gcs_server keeps; -1 means all",
    ),
    Setting(
        "maximum_gcs_destroyed_actor_cached_count",
        100_000,
        Reader.HEAD,
        "dead actors that gcs_server keeps",
    ),
    Setting(
        "maximum_gcs_dead_worker_cached_count",
        100_000,
        Reader.HEAD,
        "dead workers that gcs_server keeps",
        since=(2, 56),
    ),
    # The object store.
    Setting(
        "record_ref_creation_sites",
        False,
        Reader.EVERYWHERE,
        "whether object references remember the line that created them",
    ),
)
BY_NAME = {setting.name: setting for setting in SETTINGS}


def version_of(text: str) -> Version:
    """``(2, 60)`` of ``"2.60.0"``."""
    major, minor = text.split(".")[:2]
    return int(major), int("".join(filter(str.isdigit, minor)) or 0)


def known_in(version: Version) -> dict[str, Setting]:
    """The settings that a version of Ray has, by name."""
    return {setting.name: setting for setting in SETTINGS if setting.since <= version}


def effective(name: str, system_config: dict[str, object], given: dict[str, str]) -> Value:
    """The value of a setting for one process.

    Args:
        name: the setting.
        system_config: what the head was started with.
        given: the settings in the environment of the process (:func:`given_in`).

    Examples:
        >>> effective("kill_idle_workers_interval_ms", {}, {"kill_idle_workers_interval_ms": "0"})
        0
    """
    setting = BY_NAME[name]
    at_head = system_config.get(name)
    if isinstance(at_head, (bool, int, float)):
        return at_head
    text = given.get(name)
    parsed = None if text is None else setting.parse(text)
    return setting.default if parsed is None else parsed


def given_in(environment: dict[str, str]) -> dict[str, str]:
    """The settings among environment variables, by name, whether Ray has them or not.

    Ray's other variables are in capitals; a token or a password is never among these.
    """
    return {
        variable.removeprefix(ENVIRONMENT_PREFIX): text
        for variable, text in environment.items()
        if variable.startswith(ENVIRONMENT_PREFIX)
        and variable.removeprefix(ENVIRONMENT_PREFIX)[:1].islower()
    }


def unknown_to_ray(names: Iterable[str]) -> list[str]:
    """Those of the names that the Ray of this environment does not have.

    A binary that cannot be read knows every name.
    """
    wanted = set(names) - _READ_IN_PYTHON
    if not wanted:
        return []
    for binary in ray_binaries():
        try:
            with (
                binary.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
            ):
                # The names are in the table of RAY_CONFIG, each with its variable.
                wanted = {
                    name
                    for name in wanted
                    if text.find(f"{ENVIRONMENT_PREFIX}{name}\0".encode()) < 0
                }
        except (OSError, ValueError):
            return []
    return sorted(wanted)


def ray_binaries() -> list[Path]:
    """The binaries of the Ray of this environment that read settings."""
    import ray

    core = Path(ray.__file__).parent / "core" / "src" / "ray"
    return [core / "gcs" / "gcs_server", core / "raylet" / "raylet"]
