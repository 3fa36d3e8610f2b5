"""Reads the history of a trial from the histories of its experiment.

It is given as the lines of Ray's ``result.json``, so whoever reads it gets what Ray reads.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pandas
from pyarrow.fs import FileSystem, LocalFileSystem
from ray.air._internal.json import SafeFallbackEncoder
from ray.air.constants import EXPR_RESULT_FILE, TIMESTAMP, TRAINING_ITERATION
from ray.tune.analysis.experiment_analysis import ExperimentAnalysis
from ray.tune.experiment import Trial
from ray.tune.result import TIME_TOTAL_S

from ray_tune_memguard.adapter.histories import places
from ray_tune_memguard.notices import Notices
from ray_tune_memguard.store.histories import History, HistoryStore
from ray_tune_memguard.store.result_values import Result

_PLAIN_KEYS = (str, int, float, bool, type(None))
_notices = Notices()
_encode = SafeFallbackEncoder().encode
# Ray adds them to each result. A trial that goes back to a checkpoint repeats the iteration, and
# in its first second the time as well.
_IDENTITY = (TRAINING_ITERATION, TIMESTAMP, TIME_TOTAL_S)


def lines(store: HistoryStore, trial_id: str, in_file: bytes | None) -> bytes:
    """All results of a trial, one JSON object a line, as in Ray's ``result.json``.

    Args:
        store: the histories of the experiment.
        trial_id: Ray's id of the trial.
        in_file: the content of the trial's ``result.json``; None if it has none. A user's own
            logger writes one, and so does a run without this package that resumes the experiment.
    """
    found = history(store, trial_id)
    if not found.results and in_file:
        return in_file
    return as_lines(merged(found, results_in(in_file)).results)


def merged(stored: History, in_file: list[Result]) -> History:
    """The whole history of a trial, of which a store and a file each have a part, or all.

    What both have is the store's: one took it over from the other, or a user's own logger wrote it
    as well. The rest of the file is of runs of Ray alone. These come between the runs that wrote to
    the store, in the order of their times. A trial that began from scratch in the store has left
    behind what is older in the file.
    """
    if not in_file:
        return stored
    ids, ids_in_file = list(map(_identity, stored.results)), list(map(_identity, in_file))
    known = Counter(ids)
    rest = []
    for result, identity in zip(in_file, ids_in_file, strict=True):
        known[identity] -= 1
        if known[identity] < 0:
            rest.append(result)
    if stored.results and not stored.has_earlier:
        del rest[: _count_before(_when(stored.results[0]), rest)]
    if not rest:
        return stored
    begins = sorted({min(start, len(ids)) for start in stored.starts})
    if ids_in_file[: len(ids)] == ids:
        return replace(stored, results=stored.results + rest, starts=tuple(filter(None, begins)))
    results: list[Result] = []
    starts: list[int] = []
    ends = {0, *begins, len(stored.results)}
    for begin, end in itertools.pairwise(sorted(ends)):
        count = _count_before(_when(stored.results[begin]), rest)
        if count:
            starts.append(len(results))
            results += rest[:count]
            starts.append(len(results))
            del rest[:count]
        if begin in begins:
            starts.append(len(results))
        results += stored.results[begin:end]
    if rest:
        starts.append(len(results))
        results += rest
    return replace(stored, results=results, starts=tuple(dict.fromkeys(filter(None, starts))))


def results_in(lines: bytes | None) -> list[Result]:
    """The results of a ``result.json``. A line that is not JSON is left out.

    The last one of a trial whose driver was killed may end in the middle.
    """
    found = []
    for line in (lines or b"").split(b"\n"):
        with suppress(ValueError):
            found.append(json.loads(line))
    return [result for result in found if isinstance(result, dict)]


def _identity(result: Result) -> bytes:
    """What tells a result from all others of its trial, also if other callbacks added to one."""
    found = {key: result[key] for key in _IDENTITY if key in result}
    return as_lines([found if len(found) == len(_IDENTITY) else result])


def _count_before(when: tuple[float, ...], results: list[Result]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda one: _when(one) < when, results))


def _when(result: Result) -> tuple[float, ...]:
    """When a result was reported: Ray's full second, and its iteration. Unknown is last."""
    found = (result.get(key) for key in (TIMESTAMP, TRAINING_ITERATION))
    return tuple(one if isinstance(one, (int, float)) else math.inf for one in found)


def history(store: HistoryStore, trial_id: str) -> History:
    """The results of a trial. Damaged ones are left out, with a warning for each store."""
    found = store.history(trial_id)
    if found.missing:
        _notices.warn(
            str(store.path),
            f"{found.missing} results of trial {trial_id} in {store.path} are damaged and left "
            "out. Further trials are not logged.",
        )
    return found


def with_plain_keys(value: Any) -> Any:
    """A value with texts for keys that JSON does not take, where Ray's JSON logger fails."""
    if isinstance(value, dict):
        return {
            key if isinstance(key, _PLAIN_KEYS) else str(key): with_plain_keys(inner)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(map(with_plain_keys, value))
    return value


def as_lines(results: list[Result]) -> bytes:
    """Results as the lines that Ray's logger writes."""
    try:
        return "".join(f"{_encode(result)}\n" for result in results).encode()
    except TypeError:
        plain = map(with_plain_keys, results)
        return "".join(f"{_encode(result)}\n" for result in plain).encode()


def of_trial(trial: Trial) -> bytes | None:
    """The history of a trial as lines; None if its experiment has no histories."""
    storage = trial.storage
    if storage is None:
        return None
    filesystem = storage.storage_filesystem
    store = places.find(filesystem, str(storage.experiment_fs_path))
    if store is None:
        return None
    path = str(PurePosixPath(storage.trial_fs_path, EXPR_RESULT_FILE))
    return lines(store, trial.trial_id, content_of(filesystem, path))


def content_of(filesystem: FileSystem, path: str) -> bytes | None:
    """The content of a file; None if there is none."""
    try:
        if isinstance(filesystem, LocalFileSystem):
            with open(path, "rb", buffering=0) as file:
                return file.readall()
        with filesystem.open_input_stream(path) as stream:
            content: bytes = stream.readall()
            return content
    except (FileNotFoundError, NotADirectoryError):
        return None


def trial_dataframe(
    original: Callable[[ExperimentAnalysis, Trial], pandas.DataFrame],
    analysis: ExperimentAnalysis,
    trial: Trial,
) -> pandas.DataFrame:
    """Stands in for Ray's function that reads a trial's DataFrame from its files."""
    found = of_trial(trial)
    if found is None:
        return original(analysis, trial)
    # As Ray does it with the lines of a file.
    records = [json.loads(line) for line in found.decode().split("\n") if line]
    return pandas.json_normalize(records, sep="/") if records else pandas.DataFrame()
