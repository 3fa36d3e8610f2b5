"""Writes histories to files as Ray's own loggers do: by these loggers.

The events of TensorBoard get the times at which results were reported, and not that of the export.
"""

from __future__ import annotations

from collections.abc import Collection
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

from ray_tune_memguard.adapter.histories.reading import with_plain_keys
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


def write_files(
    trial: Trial,
    history: History,
    directory: Path,
    *,
    has_ended: bool = True,
    by: Collection[type] = DEFAULT_CALLBACK_CLASSES,
) -> None:
    """Write the files of Ray's loggers for one trial, in place of those that are there.

    Args:
        trial: the trial.
        history: its results.
        directory: where the files go.
        has_ended: whether TensorBoard gets its hyperparameters, too, as it does at a trial's end.
        by: which of Ray's loggers write; the files of a user's own are theirs.

    Raises:
        OSError: a file cannot be written.
    """
    # An ended trial's, if it was empty, was removed.
    directory.mkdir(parents=True, exist_ok=True)
    named = [directory / name for kind in by for name in _FILES.get(kind, ())]
    for path in (*named, *directory.glob(EVENT_FILES)):
        path.unlink(missing_ok=True)
    elsewhere: Any = _TrialElsewhere(trial, directory)
    csv_logger = CSVLoggerCallback()
    events = _event_logger() if TBXLoggerCallback in by else None
    loggers: list[LoggerCallback] = [
        *([JsonLoggerCallback()] if JsonLoggerCallback in by else []),
        *([csv_logger] if CSVLoggerCallback in by else []),
        *([events] if events else []),
    ]
    for logger in loggers:
        logger.log_trial_start(elsewhere)
    for number, result in enumerate(map(with_plain_keys, history.results)):
        if number in history.starts:
            # In a resumed run the columns are those of its first result.
            csv_logger.log_trial_end(elsewhere)
        if events is not None:
            events.reported_at = _time_of(result)
        iteration = result.get(TRAINING_ITERATION, number + 1)
        for logger in loggers:
            logger.log_trial_result(iteration, elsewhere, result)
    if events is not None and not has_ended:
        events.close(elsewhere)
    for logger in loggers:
        logger.log_trial_end(elsewhere, failed=trial.status == Trial.ERROR)


def _time_of(result: Result) -> float | None:
    found = result.get(TIMESTAMP)
    return float(found) if isinstance(found, (int, float)) else None


class _EventLogger(TBXLoggerCallback):
    """Ray's TensorBoard logger, with the times of the results in place of the present time."""

    def __init__(self) -> None:
        super().__init__()
        self.reported_at: float | None = None
        self._summary_writer_cls = self._writer

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
