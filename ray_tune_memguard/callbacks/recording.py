"""Appends a callback's records to a file with the experiment, and warns once if it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray_tune_memguard.adapter.handle import RunHandle
from ray_tune_memguard.notices import Notices
from ray_tune_memguard.report.records import SUFFIX, RecordFile

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from ray.tune.experiment import Trial


class RunRecords:
    """The records of one kind of one run, in ``.memguard/<kind>-<run>.jsonl``.

    Each run of an experiment has a file of its own. Like the RSS series, it is in the experiment's
    directory, or is uploaded to the experiment's storage with each experiment checkpoint.
    :func:`ray_tune_memguard.report.records.read_records` reads the files of all runs.

    Args:
        run: the run.
        kind: of the records; the beginning of the file's name.
        owner: the callback's name, for the warning.
        notices: the warnings of the run.
    """

    def __init__(self, run: RunHandle, kind: str, owner: str, notices: Notices) -> None:
        self._run = run
        self._kind = kind
        self._owner = owner
        self._notices = notices
        self._file: RecordFile | None = None

    @property
    def path(self) -> Path | None:
        """The file; None before the first record, or if the run has no directory yet."""
        return None if self._file is None else self._file.path

    def add(self, trials: Sequence[Trial], record: DataclassInstance) -> None:
        """Append a record. An error of the disk is a warning, once until a record is written.

        Args:
            trials: the run's trials, as hooks get them.
            record: a dataclass object.
        """
        if self._file is None:
            path = self._run.report_path(trials, self._kind, SUFFIX)
            if path is None:
                return
            self._file = RecordFile(path)
        try:
            self._file.add(record)
            self._notices.again(f"records:{self._kind}")
        except OSError as error:
            self._notices.warn(
                f"records:{self._kind}",
                f"{self._owner} cannot write {self._file.path} ({error}). It continues; records "
                "are missing from the file until it can be written again.",
            )
