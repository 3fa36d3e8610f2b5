"""Brings two files of histories of one experiment together, without losing a result.

Each run that writes a file notes an id in it, so a file tells which runs it has the results of. One
that has all runs of another is a later state of it, wherever it is and whatever the clocks say.
Files of which each has a run that the other lacks are those of runs that did not know of each
other: one was killed before its results were in the storage, and another machine resumed the
experiment.
"""

from __future__ import annotations

from pathlib import Path

from ray_tune_memguard.adapter.histories.merging import are_the_same, joined
from ray_tune_memguard.notices import logger
from ray_tune_memguard.store import files
from ray_tune_memguard.store.errors import StoreError
from ray_tune_memguard.store.histories import HistoryStore, salvage
from ray_tune_memguard.store.result_values import ResultEncoder

#: The metadata key that says that results of the experiment are in files of Ray's loggers, too.
HAS_FILES = "files"
# What a store gives was encoded before, so nothing has to be replaced.
_encoder = ResultEncoder(replace=str)


def open_with_all(path: Path, others: list[Path], published_at: str) -> HistoryStore:
    """Open a file to write it, with the results of all given files.

    Args:
        path: the file; if it is missing, it begins as the first of the others.
        others: copies of other files of the experiment, which may change.
        published_at: where the experiment is, for warnings.

    Raises:
        OSError, sqlite3.Error: a file cannot be read or written. None that has results is lost.
        StoreError: another version of this package wrote one.
    """
    if others and not path.exists():
        files.copy_to(others[0], path)
        others = others[1:]
    store, is_whole = open_salvaged(path)
    try:
        for copy in others:
            other, other_is_whole = open_salvaged(copy)
            try:
                if is_whole and store.has_runs_of(other):
                    continue
                if other_is_whole and other.has_runs_of(store):
                    other.finalize()
                    store.close()
                    files.copy_to(copy, path)
                    store, is_whole = open_salvaged(path)
                elif changed := join(store, other):
                    logger.warning(
                        "Results of %d trial(s) of %s were missing in the file on this machine, "
                        "which has others that a killed run could not copy to the storage. All are "
                        "brought together in %s.",
                        changed,
                        published_at,
                        path,
                    )
            finally:
                other.close()
    except BaseException:
        store.close()
        raise
    return store


def open_salvaged(path: Path) -> tuple[HistoryStore, bool]:
    """Open a file to write it; a damaged one is replaced by its intact results.

    Returns:
        The store, and whether it was intact.

    Raises:
        OSError, sqlite3.Error: it cannot be written, or another run is writing it.
        StoreError: another version of this package wrote it.
    """
    try:
        return HistoryStore.open_to_write(path), True
    except StoreError as error:
        if type(error) is not StoreError:
            raise
        logger.warning(
            "The histories in %s are damaged (%s). They are replaced by their intact results; the "
            "damaged file is kept beside them.",
            path,
            error,
        )
        salvage(path)
        return HistoryStore.open_to_write(path), False


def join(target: HistoryStore, other: HistoryStore) -> int:
    """Add to histories what only others have. A kill meanwhile costs nothing of either.

    Returns:
        The number of trials whose results were not all there.

    Raises:
        sqlite3.Error: not everything was added.
    """
    changed = 0
    for trial_id in other.trial_ids():
        mine = target.history(trial_id)
        whole = joined(mine, other.history(trial_id))
        if are_the_same(whole.results, mine.results):
            continue
        rows = [_encoder.encode(result) for result in whole.results]
        target.rewrite(trial_id, rows, (0, *whole.starts) if whole.has_earlier else whole.starts)
        changed += 1
    if other.get_metadata(HAS_FILES):
        target.set_metadata(**{HAS_FILES: "yes"})
    # Last: from now on this file is taken for complete.
    target.add_runs(*other.runs())
    return changed


def view_of_both(path: Path, other: HistoryStore, directory: Path) -> HistoryStore:
    """Open for reading what :func:`open_with_all` would make of a file and of another.

    Args:
        path: the file, which stays as it is.
        other: the other one.
        directory: for a copy, which may be removed once it is open.
    """
    copy = directory / "both" / path.name
    files.copy_to(path, copy)
    store = HistoryStore.open_to_write(copy)
    try:
        join(store, other)
        store.finalize()
    finally:
        store.close()
    return HistoryStore.open(copy)
