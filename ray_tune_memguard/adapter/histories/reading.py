"""Reads the history of a trial from the histories of its experiment.

It is given as the lines of Ray's ``result.json``, so whoever reads it gets what Ray reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import PurePosixPath

import pandas
from pyarrow.fs import FileSystem, LocalFileSystem
from ray.air.constants import EXPR_RESULT_FILE
from ray.tune.analysis.experiment_analysis import ExperimentAnalysis
from ray.tune.experiment import Trial

from ray_tune_memguard.adapter.histories import last_results, places
from ray_tune_memguard.adapter.histories.merging import as_lines, merged
from ray_tune_memguard.notices import Notices
from ray_tune_memguard.store.histories import History, HistoryStore
from ray_tune_memguard.store.result_values import Result

_notices = Notices()


def lines(store: HistoryStore, trial_id: str, in_file: bytes | None) -> bytes:
    """All results of a trial, one JSON object a line, as in Ray's ``result.json``.

    Args:
        store: the histories of the experiment.
        trial_id: Ray's id of the trial.
        in_file: the content of the trial's ``result.json``; None if it has none. A user's own
            logger writes one, and so does a run without this package that resumes the experiment.
    """
    found = history(store, trial_id)
    if not found.results and found.empty_since is None and in_file:
        return in_file
    return as_lines(merged(found, results_in(in_file)).results)


def results_in(lines: bytes | None) -> list[Result]:
    """The results of a ``result.json``. A line that is not JSON is left out.

    The last one of a trial whose driver was killed may end in the middle.
    """
    found = []
    for line in (lines or b"").split(b"\n"):
        with suppress(ValueError):
            found.append(json.loads(line))
    return [result for result in found if isinstance(result, dict)]


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
    found = lines(store, trial.trial_id, content_of(filesystem, path))
    return found or as_lines(last_results.of_trial(trial))


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
        try:
            return original(analysis, trial)
        except FileNotFoundError:
            found = as_lines(last_results.without_files(analysis, trial))
            if not found:
                raise
    # As Ray does it with the lines of a file.
    records = [json.loads(line) for line in found.decode().split("\n") if line]
    return pandas.json_normalize(records, sep="/") if records else pandas.DataFrame()
