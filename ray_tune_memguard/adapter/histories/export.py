"""Writes histories to files as Ray's own loggers do: by these loggers.

The events of TensorBoard get the times at which results were reported, and not that of the export.
What one of the loggers refuses is left out of its files; the others have it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from ray.air.constants import (
    EXPR_PARAM_FILE,
    EXPR_PARAM_PICKLE_FILE,
    EXPR_PROGRESS_FILE,
    EXPR_RESULT_FILE,
    TIMESTAMP,
    TRAINING_ITERATION,
)
from ray.tune.experiment import Trial
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, LoggerCallback, TBXLoggerCallback
from ray.tune.utils.callback import DEFAULT_CALLBACK_CLASSES

from ray_tune_memguard.adapter import boundary
from ray_tune_memguard.adapter.histories.merging import as_lines, with_plain_keys
from ray_tune_memguard.store.histories import History
from ray_tune_memguard.store.result_values import Result

# The files that Ray's loggers write under the same names each time.
_FILES: dict[type, tuple[str, ...]] = {
    JsonLoggerCallback: (EXPR_RESULT_FILE, EXPR_PARAM_FILE, EXPR_PARAM_PICKLE_FILE),
    CSVLoggerCallback: (EXPR_PROGRESS_FILE,),
}
_EVENT_SUFFIX = ".memguard"
#: The event files that are written here. Others are a user's own.
EVENT_FILES = f"events.out.tfevents.*{_EVENT_SUFFIX}"
_EVENTS = "the event file"
# NumPy has no larger integers, so Ray's logger fails.
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1


class _TrialElsewhere:
    """What Ray's loggers need of a trial, with another directory."""

    #: Ray's loggers fetch the files of a trial that has a checkpoint from the storage.
    checkpoint = None

    def __init__(self, trial: Trial, directory: Path) -> None:
        self.trial_id = trial.trial_id
        self.config = trial.config
        self.evaluated_params = trial.evaluated_params
        self.local_path = str(directory)

    def init_local_path(self) -> None:
        Path(self.local_path).mkdir(parents=True, exist_ok=True)


class _Guarded:
    """One of Ray's loggers. What it refuses is left out, and counted.

    Args:
        logger: the logger.
        file: what it writes, for the user.
    """

    def __init__(self, logger: LoggerCallback, file: str) -> None:
        self.logger = logger
        self.file = file
        #: Whether it has written a result.
        self.has_written = False
        self._left_out = 0
        self._first: Exception | None = None
        self._is_off = False

    def start(self, trial: Any) -> None:
        self._is_off = not self._does(partial(self.logger.log_trial_start, trial))

    def write(self, iteration: int, trial: Any, result: Result) -> bool:
        """Write a result. Returns False if the logger has refused it."""
        if self._is_off:
            return True
        is_written = self._does(partial(self.logger.log_trial_result, iteration, trial, result))
        self._left_out += not is_written
        self.has_written |= is_written
        return is_written

    def end(self, trial: Any, failed: bool) -> None:
        if not self._is_off:
            self._is_off = not self._does(partial(self.logger.log_trial_end, trial, failed=failed))

    def left_out(self, results: int) -> list[str]:
        """What it lacks, as a sentence; empty if it lacks nothing."""
        if self._first is None:
            return []
        if self._is_off:
            return [f"{self.file} is not complete: {self._first!r}"]
        return [
            f"{self.file} lacks {self._left_out} of {results} results, or values in them: "
            f"{self._first!r}"
        ]

    def _does(self, step: Callable[[], object]) -> bool:
        try:
            step()
        except OSError:  # It is the disk, and no value.
            raise
        except Exception as error:
            boundary.raise_if_of_signal(error)
            self._first = self._first or error
            return False
        return True


def write_files(
    trial: Any,
    history: History,
    directory: Path,
    *,
    has_ended: bool = True,
    by: Collection[type] = DEFAULT_CALLBACK_CLASSES,
    config_error: Exception | None = None,
) -> list[str]:
    """Write the files of Ray's loggers for one trial, in place of those that are there.

    Args:
        trial: the trial, or what Ray's loggers need of it.
        history: its results.
        directory: where the files go.
        has_ended: whether TensorBoard gets its hyperparameters, too, as it does at a trial's end.
        by: which of Ray's loggers write; the files of a user's own are theirs.
        config_error: why its config cannot be read; its parameters are not written then.

    Returns:
        A sentence for each file that lacks something, because a logger refuses it.

    Raises:
        OSError: a file cannot be written.
    """
    # An ended trial's, if it was empty, was removed.
    directory.mkdir(parents=True, exist_ok=True)
    named = [directory / name for kind in by for name in _FILES.get(kind, ())]
    for path in (*named, *directory.glob(EVENT_FILES)):
        path.unlink(missing_ok=True)
    elsewhere: Any = _TrialElsewhere(trial, directory)
    parameters = _JsonLogger(config_error)
    csv = _Guarded(CSVLoggerCallback(), EXPR_PROGRESS_FILE)
    events = _event_logger() if TBXLoggerCallback in by else None
    loggers = [
        *([_Guarded(parameters, EXPR_RESULT_FILE)] if JsonLoggerCallback in by else []),
        *([csv] if CSVLoggerCallback in by else []),
        *([_Guarded(events, _EVENTS)] if events else []),
    ]
    for logger in loggers:
        logger.start(elsewhere)
    for number, result in enumerate(map(with_plain_keys, history.results)):
        if number in history.starts:
            # In a resumed run the columns are those of its first result.
            csv.end(elsewhere, failed=False)
        if events is not None:
            events.reported_at = _time_of(result)
        iteration = result.get(TRAINING_ITERATION, number + 1)
        for logger in loggers:
            if not logger.write(iteration, elsewhere, result) and logger is csv:
                _begin_again(csv, elsewhere, directory / EXPR_PROGRESS_FILE)
    if events is not None and not has_ended:
        events.close(elsewhere)
    for logger in loggers:
        logger.end(elsewhere, failed=trial.status == Trial.ERROR)
    left_out = [one for logger in loggers for one in logger.left_out(len(history.results))]
    return [*parameters.left_out, *left_out, *([] if events is None else events.left_out())]


def _begin_again(csv: _Guarded, trial: Any, path: Path) -> None:
    """Let the next result give the columns if no result was written."""
    if not csv.has_written:
        csv.end(trial, failed=False)
        path.unlink(missing_ok=True)


def _time_of(result: Result) -> float | None:
    found = result.get(TIMESTAMP)
    return float(found) if isinstance(found, (int, float)) else None


class _JsonLogger(JsonLoggerCallback):
    """Ray's JSON logger, for a config that cannot be written, too.

    Args:
        config_error: why the config cannot be read; None if it can.
    """

    def __init__(self, config_error: Exception | None) -> None:
        super().__init__()
        self._config_error = config_error
        #: A sentence if the files of the parameters are missing.
        self.left_out: list[str] = []

    def update_config(self, trial: Any, config: Any) -> None:
        try:
            if self._config_error is not None:
                raise self._config_error
            super().update_config(trial, config)
        except OSError:
            raise
        except Exception as error:
            boundary.raise_if_of_signal(error)
            names = (EXPR_PARAM_FILE, EXPR_PARAM_PICKLE_FILE)
            for name in names:
                Path(trial.local_path, name).unlink(missing_ok=True)
            self.left_out = [f"{' and '.join(names)} are not written: {error!r}"]

    def log_trial_result(self, iteration: int, trial: Any, result: Result) -> None:
        as_lines([result])  # Ray's logger would leave a part of a line that it cannot write.
        super().log_trial_result(iteration, trial, result)


class _EventLogger(TBXLoggerCallback):
    """Ray's TensorBoard logger, with the times of the results in place of the present time."""

    def __init__(self) -> None:
        super().__init__()
        self.reported_at: float | None = None
        self._summary_writer_cls = self._writer
        #: The names of metrics that were too large.
        self._large: dict[str, None] = {}

    def log_trial_result(self, iteration: int, trial: Any, result: Result) -> None:
        super().log_trial_result(iteration, trial, self._without_large_integers(result))

    def _without_large_integers(self, result: Result, prefix: str = "") -> Result:
        kept: Result = {}
        for key, value in result.items():
            if isinstance(value, dict):
                kept[key] = self._without_large_integers(value, f"{prefix}{key}/")
            elif type(value) is not int or _SMALLEST <= value <= _LARGEST:
                kept[key] = value
            else:
                self._large[f"{prefix}{key}"] = None
        return kept

    def left_out(self) -> list[str]:
        """What it has left out by itself, as a sentence; empty if that is nothing."""
        names = ", ".join(map(ascii, self._large))
        return [f"{_EVENTS} lacks integers of more than 64 bits: {names}"] if names else []

    def _writer(self, *args: object, **kwargs: object) -> Any:
        from tensorboardX import SummaryWriter

        logger = self

        class Writer(SummaryWriter):
            def _at_its_time(self, name: str, *args: object, **kwargs: object) -> None:
                kwargs.setdefault("walltime", logger.reported_at)
                getattr(super(), name)(*args, **kwargs)

            def add_scalar(self, *args: object, **kwargs: object) -> None:
                self._at_its_time("add_scalar", *args, **kwargs)

            def add_histogram(self, *args: object, **kwargs: object) -> None:
                self._at_its_time("add_histogram", *args, **kwargs)

            def add_image(self, *args: object, **kwargs: object) -> None:
                self._at_its_time("add_image", *args, **kwargs)

            def add_images(self, *args: object, **kwargs: object) -> None:
                self._at_its_time("add_images", *args, **kwargs)

            def add_video(self, *args: object, **kwargs: object) -> None:
                self._at_its_time("add_video", *args, **kwargs)

        return Writer(*args, filename_suffix=_EVENT_SUFFIX, **kwargs)

    def close(self, trial: Any) -> None:
        """Close the file of a trial that has not ended."""
        self._trial_writer.pop(trial).close()


def _event_logger() -> _EventLogger | None:
    """The logger; None without tensorboardX, where Ray writes no events either."""
    try:
        return _EventLogger()
    except ImportError:
        return None
