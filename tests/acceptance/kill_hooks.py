"""Aimed kills: the driver kills itself at a chosen instant of a chosen write.

All names of Ray's and of MemGuard's that are hooked are in this module. Nothing is hooked unless
``AIM_VARIABLE`` says so: ``AIM:INSTANT:TRIALS``, for example ``publish:during:60``, kills at the
first such instant after 60 trials have finished.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.acceptance.kill_log import COMPLETE, KILL, write_line, written

AIM_VARIABLE = "MEMGUARD_KILLS_AIM"
STATE_FILES = "experiment_state-"
SEARCHER_FILES = ("basic-variant-state-", "search_gen_state-", "searcher-state-")

#: What can be aimed at, and the instants of each, in the order in which they come.
#: spill: nothing written; a trial's row is in; all rows are in, not committed; committed.
#: checkpoint: before it; without the callbacks' states; written, before its upload.
#: publish: of MemGuard's state file: before it; before the new file gets the name; after it.
#: upload: of a checkpoint: half the state file; all of it; the searcher's state.
AIMS: dict[str, tuple[str, ...]] = {
    "spill": ("before", "row", "uncommitted", "after"),
    "checkpoint": ("before", "during", "after"),
    "publish": ("before", "during", "after"),
    "upload": ("half", "state", "searcher"),
}
#: These are steps of MemGuard's; Ray alone has none of them.
MEMGUARD_ONLY = ("spill", "publish")


class _Trigger:
    """Kills the process when the instant has come."""

    def __init__(self, instant: str, after: int) -> None:
        self._instant = instant
        self._after = after

    def is_due(self, instant: str) -> bool:
        return instant == self._instant and written.get(COMPLETE, 0) >= self._after

    def __call__(self, instant: str) -> None:
        if self.is_due(instant):
            write_line(KILL)
            os.kill(os.getpid(), signal.SIGKILL)


def install_from_environment() -> None:
    """Hook what the environment variable says, if there is one."""
    text = os.environ.pop(AIM_VARIABLE, "")
    if text:
        aim, instant, after = text.split(":")
        _INSTALL[aim](_Trigger(instant, int(after)))


def _wrap(owner: Any, name: str, before: Callable[[], None], after: Callable[[], None]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        before()
        result = original(*args, **kwargs)
        after()
        return result

    setattr(owner, name, wrapper)


def _nothing() -> None:
    pass


def _hook_spill(trigger: _Trigger) -> None:
    from ray_tune_memguard.store.trial_store import TrialStore

    original = TrialStore.transaction

    @contextmanager
    def transaction(self: TrialStore) -> Iterator[None]:
        trigger("before")
        with original(self):
            yield
            trigger("uncommitted")
        trigger("after")

    TrialStore.transaction = transaction
    _wrap(TrialStore, "put", _nothing, lambda: trigger("row"))


def _hook_checkpoint(trigger: _Trigger) -> None:
    from ray.tune.callback import CallbackList
    from ray.tune.execution.experiment_state import _ExperimentCheckpointManager

    original = _ExperimentCheckpointManager.sync_up_experiment_state

    def sync_up(self: Any, save_fn: Callable[[], None], *args: Any, **kwargs: Any) -> None:
        def save() -> None:
            trigger("before")
            save_fn()
            trigger("after")

        original(self, save, *args, **kwargs)

    _ExperimentCheckpointManager.sync_up_experiment_state = sync_up
    _wrap(CallbackList, "save_to_dir", lambda: trigger("during"), _nothing)


def _hook_publish(trigger: _Trigger) -> None:
    from ray_tune_memguard.store.state_file import ExperimentStateFile

    _wrap(ExperimentStateFile, "publish", lambda: trigger("before"), lambda: trigger("after"))
    replace = os.replace

    def replace_or_die(source: Any, target: Any, **kwargs: Any) -> None:
        name = os.path.basename(os.fspath(target))
        if name.startswith(STATE_FILES) and name.endswith(".json"):
            trigger("during")
        replace(source, target, **kwargs)

    os.replace = replace_or_die


def _hook_upload(trigger: _Trigger) -> None:
    """MemGuard copies file by file, Ray everything at once with Arrow."""
    if "ray_tune_memguard" in sys.modules:
        _hook_single_copies(trigger)
    else:
        _hook_arrow(trigger)


def _hook_single_copies(trigger: _Trigger) -> None:
    """On a local disk the state file is there already when the searcher's is copied."""
    from ray_tune_memguard.adapter.run import uploads

    copy_file = uploads.copy_file

    def copy_file_or_die(source: str, target: str) -> None:
        is_searchers = os.path.basename(source).startswith(SEARCHER_FILES)
        if is_searchers:
            trigger("state")
            if trigger.is_due("half"):
                _copy_half(Path(source), Path(target))
                trigger("half")
        copy_file(source, target)
        if is_searchers:
            trigger("searcher")

    uploads.copy_file = copy_file_or_die


def _hook_arrow(trigger: _Trigger) -> None:
    """Of Arrow's copy, which is not Python's, a stage is made that it can be killed in.

    It opens all files in some order of its own, empties each and then fills it.
    """
    from ray.train._internal import storage

    copy_files = storage._pyarrow_fs_copy_files

    def copy_files_or_die(source: Any, target: Any, *args: Any, **kwargs: Any) -> None:
        if os.path.isdir(source):
            for instant in AIMS["upload"]:
                if trigger.is_due(instant):
                    _copy_some(Path(source), Path(target), instant, shutil.copyfile)
                    trigger(instant)
        copy_files(source, target, *args, **kwargs)

    storage._pyarrow_fs_copy_files = copy_files_or_die


def _copy_some(source: Path, target: Path, instant: str, copyfile: Callable[..., Any]) -> None:
    prefixes = SEARCHER_FILES if instant == "searcher" else (STATE_FILES,)
    for file in source.iterdir():
        if file.name.startswith(prefixes) and file.is_file():
            (_copy_half if instant == "half" else copyfile)(file, target / file.name)


def _copy_half(source: Path, target: Path) -> None:
    content = source.read_bytes()
    target.write_bytes(content[: len(content) // 2])


_INSTALL: dict[str, Callable[[_Trigger], None]] = {
    "spill": _hook_spill,
    "checkpoint": _hook_checkpoint,
    "publish": _hook_publish,
    "upload": _hook_upload,
}
