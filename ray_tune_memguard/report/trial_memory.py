"""The memory of finished trials: the record of each, and how it is read."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from ray_tune_memguard.report.records import file_pattern, known_fields, read_records

if TYPE_CHECKING:
    import pandas as pd

#: The beginning of the files' names.
KIND = "trial-memory"
# Configurations are kept for reading: long values as text of this length.
_MAX_TEXT = 200
_MAX_ENTRIES = 200
#: Of dictionaries in dictionaries; they may contain themselves.
_MAX_DEPTH = 20
#: Entries and characters of a sequence that is made into text, with all that is in it.
_MAX_PARTS = 10_000
_WITH_PARTS = (list, tuple, dict, set, frozenset, str, bytes)


@dataclass(frozen=True)
class TrialMemory:
    """What one trial has used, all of its processes together.

    Attributes:
        trial_id: the trial.
        end: ``completed``, ``error``, or ``unfinished`` if the run ended first.
        peak_rss_bytes: the highest resident memory.
        peak_anonymous_bytes: the highest anonymous memory: resident memory without shared memory
            (such as Ray's object store) and files (such as libraries). What other processes cannot
            use meanwhile.
        last_rss_bytes, last_anonymous_bytes: the latest reading.
        growth_bytes_per_s: the slope of the anonymous memory over the last 30 readings; NaN for a
            short trial.
        is_exact: whether the peak RSS is the kernel's own figure; otherwise it is the highest
            reading, which can miss a short peak.
        children: the highest number of descendants of its process.
        is_reused: whether its process had run another trial before.
        starts: how many times it was started: more than once after a failure or a pause.
        node: the id of its node, the last one.
        pid: its process there.
        started, ended: seconds since the epoch.
        config: its configuration.
    """

    trial_id: str
    end: str
    peak_rss_bytes: int
    peak_anonymous_bytes: int
    last_rss_bytes: int
    last_anonymous_bytes: int
    growth_bytes_per_s: float
    is_exact: bool
    children: int
    is_reused: bool
    starts: int
    node: str
    pid: int
    started: float
    ended: float
    config: dict[str, object] = field(default_factory=dict)


def plain_config(config: object) -> dict[str, object]:
    """A configuration with keys such as ``model/layers``; other values than numbers as text.

    The driver's loop calls it, so what it takes is bounded: of a configuration with more than 200
    entries the rest is left out, and a large value is named by its type.
    """
    found: dict[str, object] = {}
    if isinstance(config, dict):
        _add_plain(found, config, "", 0)
    return found


def _add_plain(
    found: dict[str, object], config: dict[object, object], prefix: str, depth: int
) -> None:
    for key, given in config.items():
        if len(found) >= _MAX_ENTRIES:
            found["…"] = "…"
            return
        name = f"{prefix}{_short(_text(key))}"
        value = _plain(given)
        if isinstance(value, dict) and value and depth < _MAX_DEPTH:
            _add_plain(found, value, f"{name}/", depth + 1)
        elif value is None or isinstance(value, (bool, int, float)):
            found[name] = value
        elif isinstance(value, str) or (isinstance(value, (tuple, list)) and _is_small(value)):
            found[name] = _short(_text(value))
        else:
            found[name] = _kind(value)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


def _is_small(value: tuple[object, ...] | list[object]) -> bool:
    """Whether the text of a sequence is made quickly, with all that is in it."""
    left = _MAX_PARTS
    waiting: list[Any] = [value]
    while waiting:
        one = waiting.pop()
        left -= len(one)
        if left < 0:
            return False
        if not isinstance(one, (str, bytes)):
            inner = (*one, *one.values()) if isinstance(one, dict) else one
            waiting += [part for part in inner if isinstance(part, _WITH_PARTS)]
    return True


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # A user's own class.
        return _kind(value)


def _kind(value: object) -> str:
    return f"<{type(value).__name__}>"


def _plain(value: object) -> object:
    """A number of NumPy's as one of Python's; anything else as it is."""
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return value.item()  # type: ignore[attr-defined]
    return value


def read_trial_memory(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read what the trials of an experiment have used, all of its runs.

    Args:
        path: the experiment's directory (``ResultGrid.experiment_path``, on a local disk), the
            ``.memguard`` directory in it, or one ``trial-memory-*.jsonl`` file.

    Returns:
        A DataFrame with a row for each trial that was measured and has finished, or was running
        when its run ended; the largest ``peak_rss_bytes`` first. The columns are the fields of
        :class:`~ray_tune_memguard.report.trial_memory.TrialMemory` (sizes in bytes, times in
        seconds since the epoch, growth in bytes per second), ``seconds`` (how long it took, without
        the time between two runs that it was part of), and ``config/<name>`` for each entry of the
        configurations.

    Raises:
        FileNotFoundError: there is no such file.

    Examples:
        >>> from ray_tune_memguard import read_trial_memory
        >>> memory = read_trial_memory(experiment)
        >>> (memory["peak_rss_bytes"] / 2**20).tolist(), memory["config/layers"].tolist()
        ([900.0, 300.0], [8, 2])
    """
    import pandas as pd

    records = read_records(path, KIND, _build)
    if not records:
        raise FileNotFoundError(f"No memory of trials ({file_pattern(KIND)}) at {path}")
    seconds: dict[str, float] = defaultdict(float)
    for record in records:
        seconds[record.trial_id] += record.ended - record.started
    records = _one_for_each_trial(records)
    names = [one.name for one in fields(TrialMemory) if one.name != "config"]
    rows = [
        {name: getattr(record, name) for name in names}
        | {"seconds": seconds[record.trial_id]}
        | {f"config/{name}": value for name, value in record.config.items()}
        for record in records
    ]
    frame = pd.DataFrame(rows)
    return frame.sort_values("peak_rss_bytes", ascending=False, kind="stable", ignore_index=True)


def read_spans(path: str | os.PathLike[str]) -> list[tuple[float, float]]:
    """When trials began and ended: a trial that a later run continued once for each run.

    Args:
        path: see :func:`read_trial_memory`.
    """
    return [(record.started, record.ended) for record in read_records(path, KIND, _build)]


def _one_for_each_trial(records: list[TrialMemory]) -> list[TrialMemory]:
    """A trial that a later run continued keeps its highest peaks."""
    found: dict[str, TrialMemory] = {}
    for record in records:
        earlier = found.get(record.trial_id)
        if earlier is not None:
            record = replace(
                record,
                peak_rss_bytes=max(record.peak_rss_bytes, earlier.peak_rss_bytes),
                peak_anonymous_bytes=max(record.peak_anonymous_bytes, earlier.peak_anonymous_bytes),
                children=max(record.children, earlier.children),
                starts=record.starts + earlier.starts,
                is_exact=record.is_exact and earlier.is_exact,
                started=earlier.started,
            )
        found[record.trial_id] = record
    return list(found.values())


def _build(row: dict[str, object]) -> TrialMemory:
    record = TrialMemory(**known_fields(TrialMemory, row))  # type: ignore[arg-type]
    if not isinstance(record.config, dict):
        raise ValueError("config is no object")
    return record
