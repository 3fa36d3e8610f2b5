"""Reads the history of a trial from the histories of its experiment.

It is given as the lines of Ray's ``result.json``, so whoever reads it gets what Ray reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import pandas
from pyarrow.fs import FileSystem, LocalFileSystem
from ray.air._internal.json import SafeFallbackEncoder
from ray.air.constants import EXPR_RESULT_FILE
from ray.tune.analysis.experiment_analysis import ExperimentAnalysis
from ray.tune.experiment import Trial

from ray_tune_memguard.adapter.histories import places
from ray_tune_memguard.notices import Notices
from ray_tune_memguard.store.histories import History, HistoryStore
from ray_tune_memguard.store.result_values import Result

_notices = Notices()
_encode = SafeFallbackEncoder().encode


def lines(store: HistoryStore, trial_id: str, in_file: bytes | None) -> bytes:
    """All results of a trial, one JSON object a line, as in Ray's ``result.json``.

    Args:
        store: the histories of the experiment.
        trial_id: Ray's id of the trial.
        in_file: the content of the trial's ``result.json``; None if it has none. A user's own
            logger writes one, and so does a run without this package that resumes the experiment.
    """
    return joined(as_lines(history(store, trial_id).results), in_file)


def joined(stored: bytes, in_file: bytes | None) -> bytes:
    """The whole history of a trial, of which a store and a file have each a part or all."""
    if not in_file or not in_file.strip():
        return stored
    if not stored:
        return in_file
    if _first(stored) == _first(in_file):
        return max(stored, in_file, key=lambda content: content.count(b"\n"))
    return stored + in_file


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


def as_lines(results: list[Result]) -> bytes:
    """Results as the lines that Ray's logger writes."""
    return "".join(f"{_encode(result)}\n" for result in results).encode()


def _first(content: bytes) -> Any:
    try:
        # By their meaning: another encoder may have written one of them.
        return repr(json.loads(content.split(b"\n", 1)[0]))
    except ValueError:
        return None


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
