"""The logger that records results in the histories, in the place of Ray's automatic loggers.

Ray adds a CSV, a JSON and a TensorBoard logger to the user's callbacks. This one stands where they
stood, after the user's callbacks, which may change a result before it is logged. A user's own
loggers stay.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune import Callback
from ray.tune.logger import LoggerCallback
from ray.tune.utils.callback import DEFAULT_CALLBACK_CLASSES

from ray_tune_memguard.adapter import boundary
from ray_tune_memguard.adapter.boundary import Policy
from ray_tune_memguard.adapter.histories import export, places
from ray_tune_memguard.adapter.histories.recorder import HistoryRecorder
from ray_tune_memguard.notices import Notices, logger

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.adapter.seam import Controller

# Loggers that users gave, not those that Ray added; see `default_callbacks`.
_given: weakref.WeakSet[Callback] = weakref.WeakSet()


class HistoryLogger(LoggerCallback):
    """Records the results of a run.

    Args:
        recorder: writes the results.
        replaced: Ray's loggers, which are put back if the recorder fails.
        controller: the run's controller.
    """

    def __init__(
        self, recorder: HistoryRecorder, replaced: Sequence[Callback], controller: Controller
    ) -> None:
        self.recorder = recorder
        self._replaced = list(replaced)
        self._controller = weakref.ref(controller)
        #: Whether results are recorded; False once Ray's loggers are back.
        self.is_in_place = True

    @property
    def keeps_histories(self) -> bool:
        """Tells checkpoints that all results are in the store."""
        return self.is_in_place

    def log_trial_start(self, trial: Trial) -> None:
        _BEGIN(self, trial)

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, object]) -> None:
        _ADD(self, iteration, trial, result)

    def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
        _END(self, trial)

    def commit(self, now: bool) -> bool:
        """See :meth:`HistoryRecorder.commit_if_due`; True if nothing is recorded any more."""
        return bool(_COMMIT(self, now)) or not self.is_in_place

    def close(self) -> None:
        """End the run, and leave the callbacks as the user gave them.

        Raises:
            OSError, sqlite3.Error: see :meth:`HistoryRecorder.close`.
        """
        callbacks, at = self._place()
        if at is not None:
            del callbacks[at]
        if self.is_in_place:
            self.is_in_place = False
            self.recorder.close()

    def give_back(self) -> None:
        """Let Ray's loggers write the results from now on, and what is recorded of live trials."""
        if not self.is_in_place:
            return
        self.is_in_place = False
        callbacks, at = self._place()
        if at is not None:
            # Behind this logger, so that they get what it has just failed at.
            callbacks[at + 1 : at + 1] = self._replaced
        # Each on its own: on a full disk some of them may still succeed.
        failed = [error for step in self._last_steps() if (error := _error_of(step)) is not None]
        if failed:
            logger.warning(
                "Some of the results so far could not be written, the first because of %r. What is "
                "in %s is read from there.",
                failed[0],
                self.recorder.store.path,
            )

    def _last_steps(self) -> Iterator[Callable[[], object]]:
        yield partial(places.note_files, self.recorder.store)
        yield self.recorder.commit
        controller = self._controller()
        for trial in [] if controller is None else controller._trials:
            if not trial.is_finished():
                yield partial(self._write_files, trial)
        for trial in self.recorder.uncommitted():
            yield partial(self._write_files, trial)
        yield self.recorder.finish

    def _write_files(self, trial: Trial) -> None:
        # A trial that never started has no directory, and Ray raises for its path.
        if trial.relative_logdir:
            left_out = export.write_files(
                trial,
                self.recorder.history(trial.trial_id),
                Path(str(trial.local_path)),
                has_ended=trial.is_finished(),
                by=[type(replaced) for replaced in self._replaced],
            )
            if left_out:
                raise ValueError(f"trial {trial.trial_id}: {'; '.join(left_out)}")

    def _place(self) -> tuple[list[Callback], int | None]:
        """The run's callbacks, and the index of this one."""
        controller = self._controller()
        callbacks = [] if controller is None else controller._callbacks._callbacks
        found = (index for index, callback in enumerate(callbacks) if callback is self)
        return callbacks, next(found, None)

    def __reduce__(self) -> Any:
        # Ray pickles callbacks with the tuner; a restored run makes its own.
        return Callback, ()


def install(controller: Controller, notices: Notices) -> HistoryLogger:
    """Record the results of a run, and leave out Ray's automatic loggers.

    Raises:
        OSError, sqlite3.Error, StoreError: the histories cannot be opened. Nothing was changed.
    """
    callbacks = controller._callbacks._callbacks
    replaced = automatic_loggers(callbacks)
    left_out = set(map(id, replaced))
    kept = [
        callback
        for callback in callbacks
        if id(callback) not in left_out and not isinstance(callback, HistoryLogger)
    ]
    # The process of Weights & Biases goes into a trial's directory, maybe after the trial's end.
    stay = any(isinstance(callback, LoggerCallback) for callback in kept)
    recorder = HistoryRecorder(places.open_for_run(controller), controller, notices, stay)
    made = HistoryLogger(recorder, replaced, controller)
    # In place: Ray has this list as well, and is walking along it.
    callbacks[:] = [*kept, made]
    return made


def automatic_loggers(callbacks: Sequence[Callback]) -> list[Callback]:
    """The loggers that Ray has added to the user's callbacks, behind all others."""
    found: list[Callback] = []
    for callback in reversed(callbacks):
        if type(callback) not in DEFAULT_CALLBACK_CLASSES or callback in _given:
            break
        found.insert(0, callback)
    return found


def default_callbacks(
    original: Any, callbacks: list[Callback] | None = None, **options: Any
) -> list[Callback]:
    """Stands in for Ray's function that adds its loggers, and remembers which are the user's."""
    _given.update(one for one in callbacks or () if type(one) in DEFAULT_CALLBACK_CLASSES)
    found: list[Callback] = original(callbacks, **options)
    return found


def _error_of(step: Callable[[], object]) -> Exception | None:
    """Call a function; returns what it raises."""
    try:
        step()
    except Exception as error:
        boundary.raise_if_of_signal(error)
        return error
    return None


def _give_back(made: HistoryLogger, error: Exception) -> None:
    logger.warning(
        "Results are no longer kept in %s, because of an unexpected error: %r. Ray's loggers write "
        "them to files from now on.",
        made.recorder.store.path,
        error,
    )
    made.give_back()


@boundary.entry("HistoryLogger.log_trial_start", Policy.TAKE_OUT, _give_back)
def _begin(made: HistoryLogger, trial: Trial) -> None:
    if made.is_in_place:
        made.recorder.begin(trial)


@boundary.entry("HistoryLogger.log_trial_result", Policy.TAKE_OUT, _give_back)
def _add(made: HistoryLogger, _iteration: int, trial: Trial, result: dict[str, object]) -> None:
    if made.is_in_place:
        made.recorder.add(trial, result)


@boundary.entry("HistoryLogger.log_trial_end", Policy.TAKE_OUT, _give_back)
def _end(made: HistoryLogger, trial: Trial) -> None:
    if made.is_in_place:
        made.recorder.end(trial)


@boundary.entry("HistoryLogger.commit", Policy.TAKE_OUT, _give_back)
def _commit(made: HistoryLogger, now: bool) -> bool:
    return not made.is_in_place or made.recorder.commit_if_due(now)


_BEGIN, _ADD = _begin.on_its_own(), _add.on_its_own()
_END, _COMMIT = _end.on_its_own(), _commit.on_its_own()
