"""Finds what commands read: the directory of an experiment, and how its last run ended."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from ray_tune_memguard.cli.exit_codes import CommandError, ExitCode
from ray_tune_memguard.report import records
from ray_tune_memguard.report.series_file import OWN_DIRECTORIES

if TYPE_CHECKING:
    from ray_tune_memguard.report.driver_record import DriverRecord

Found = TypeVar("Found")

#: The argument that most commands have.
path_argument = click.argument("path", type=click.Path(path_type=str))

_STATE_FILES = "experiment_state-*.json"
_MAX_NAMED = 5
#: What readers of records raise that are damaged, or cannot be read.
DAMAGE = (OSError, *records.DAMAGE)
# How much the clocks of a process's start and of its record may differ.
_CLOCK_TOLERANCE_S = 2.0
# By default a run records its RSS every ten minutes at least.
_QUIET_S = 1200.0


def local_experiment(path: str) -> Path:
    """The directory of an experiment on a local disk.

    Args:
        path: the directory, or the ``.memguard`` directory in it.

    Raises:
        CommandError: there is no experiment, or its directory cannot be examined.
    """
    if "://" in path:
        raise CommandError(
            f"{path} is not on a local disk. Copy the .memguard directory of the experiment to "
            "one, and name the directory that it is in then.",
            ExitCode.USAGE,
        )
    place = Path(os.path.abspath(os.path.expanduser(path)))
    try:
        return _examined(place)
    except OSError as error:
        raise CommandError(f"{place} cannot be examined: {error.strerror or error}.") from error


def _examined(place: Path) -> Path:
    if place.name in OWN_DIRECTORIES and place.is_dir():
        place = place.parent
    if not place.exists():
        raise CommandError(f"There is nothing at {place}.", ExitCode.NOT_FOUND)
    if not place.is_dir():
        raise CommandError(f"{place} is a file; an experiment is a directory.", ExitCode.NOT_FOUND)
    if not _is_experiment(place):
        raise CommandError(
            f"{place} is no experiment: it has neither {_STATE_FILES} nor {OWN_DIRECTORIES[0]}."
            + _experiments_in(place),
            ExitCode.NOT_FOUND,
        )
    return place


def location(path: str) -> str:
    """The place of an experiment, which may be a URI.

    Raises:
        CommandError: it is a local path without an experiment.
    """
    return path if "://" in path else str(local_experiment(path))


@contextlib.contextmanager
def failures_of(path: str, done: str) -> Iterator[None]:
    """End the command with a sentence if an experiment cannot be read.

    Args:
        path: the experiment, as the user has named it.
        done: what is done with it (``exported``).

    Raises:
        CommandError: in place of the error.
    """
    from ray_tune_memguard.store.errors import StoreError

    try:
        yield
    except (OSError, RuntimeError, ValueError, sqlite3.Error, StoreError) as error:
        # What is there is no experiment.
        code = ExitCode.NOT_FOUND if isinstance(error, ValueError) else ExitCode.FAILED
        raise CommandError(f"{path} cannot be {done}: {error}", code) from error


def newest_in(directory: Path) -> Path | None:
    """The experiment in a directory that was measured last; None if there is none."""
    named = (own for name in OWN_DIRECTORIES for own in directory.glob(f"*/{name}"))
    found = [own for own in named if os.path.isdir(own)]
    return max(found, key=_changed_at).parent if found else None


def _changed_at(own: Path) -> float:
    """When a file in a directory was changed last; 0 if it cannot be examined."""
    times = [0.0]
    with contextlib.suppress(OSError):
        for file in own.iterdir():
            times.append(_mtime(file))
    return max(times)


def _mtime(place: Path) -> float:
    try:
        return place.stat().st_mtime
    except OSError:  # It may be removed at any moment.
        return 0.0


def _is_experiment(place: Path) -> bool:
    own = (place / name for name in OWN_DIRECTORIES)
    return any(map(Path.is_dir, own)) or any(place.glob(_STATE_FILES))


def _experiments_in(place: Path) -> str:
    found = {file.parent.name for file in islice(place.glob(f"*/{_STATE_FILES}"), 1000)}
    names = ", ".join(sorted(found)[:_MAX_NAMED])
    return (
        f" Experiments in it: {names}{', …' if len(found) > _MAX_NAMED else ''}." if found else ""
    )


@dataclass
class Readings:
    """Reads the records of an experiment, and remembers which of them are damaged.

    Attributes:
        path: the experiment's directory.
        problems: a sentence for each kind of record that cannot be read.
    """

    path: Path
    problems: list[str] = field(default_factory=list)

    def read(self, what: str, reader: Callable[[Path], Found]) -> Found | None:
        """What ``reader`` reads; None if there is nothing, or it is damaged.

        Args:
            what: the records, for the problem's sentence.
            reader: is called with the path.
        """
        try:
            return reader(self.path)
        except FileNotFoundError:
            return None
        except DAMAGE as error:
            self.problems.append(f"The {what} cannot be read: {error or type(error).__name__}.")
            return None

    def require(self, what: str, reader: Callable[[Path], Found]) -> Found:
        """What ``reader`` reads.

        Raises:
            CommandError: it is damaged, or there is nothing.
        """
        found = self.read(what, reader)
        if self.problems:
            raise CommandError(f"{self.path}: {self.problems[-1]}")
        if found is None:
            raise nothing_measured(self.path, what)
        return found


def nothing_measured(path: Path, what: str) -> CommandError:
    """The error about an experiment without records of a kind."""
    if not any(os.path.isdir(path / name) for name in OWN_DIRECTORIES):
        reason = "its runs had no MemGuard() among their callbacks"
    elif last_run(path).state == "running":
        reason = "its run goes on and has recorded none yet"
    else:
        reason = "nothing recorded them in its runs"
    return CommandError(f"{path} has no {what}: {reason}.", ExitCode.NOT_FOUND)


@dataclass(frozen=True)
class LastRun:
    """How the last run of an experiment stands.

    Attributes:
        state: ``finished``, ``running``, ``killed``, or ``unknown`` if its runs left no record of
            their driver, or if this machine cannot tell.
        sentence: the same in words.
    """

    state: str
    sentence: str


def last_run(path: Path) -> LastRun:
    """How the last run of an experiment stands.

    Args:
        path: the experiment's directory.
    """
    from ray_tune_memguard.report import driver_record

    try:
        last = driver_record.last_record(path)
    except DAMAGE as error:
        return LastRun("unknown", f"The record of its driver cannot be read: {error}.")
    if last is None:
        return LastRun("unknown", "Whether its last run is over is not recorded.")
    if _ran_alone_since(path, last[1]):
        return LastRun(
            "unknown",
            "A later run was by Ray alone; whether it is over is not recorded. What follows is of "
            "the runs before it.",
        )
    if last[0].event == driver_record.END:
        return LastRun("finished", "Its last run has ended.")
    return _unended(*last)


def _ran_alone_since(path: Path, file: Path) -> bool:
    """Whether a run without records has begun after the one that ``file`` has records of.

    Ray alone leaves an experiment state file of each run, named by the time of its beginning.
    """
    from ray_tune_memguard.adapter.paths import run_of_state_file
    from ray_tune_memguard.report.driver_record import FILE_PATTERN, run_of

    recorded = set(map(run_of, file.parent.glob(FILE_PATTERN)))
    runs = {run_of_state_file(str(state)) for state in path.glob(_STATE_FILES)}
    return max(runs - recorded, default="") > run_of(file)


def is_quiet(path: Path) -> bool:
    """Whether nothing has been recorded of an experiment for so long that its run is over."""
    own = [directory for name in OWN_DIRECTORIES if os.path.isdir(directory := path / name)]
    latest = max((_changed_at(directory) for directory in own), default=0.0)
    return time.time() - max(latest, _mtime(path)) > _QUIET_S


def _unended(begin: DriverRecord, file: Path) -> LastRun:
    who = f"process {begin.pid} on {begin.host}"
    if not begin.is_seen_from_here():
        return LastRun(
            "unknown",
            f"Its last run has recorded no end; its driver was {who}, not seen from here.",
        )
    if _is_alive(begin):
        return LastRun("running", f"Its last run goes on; its driver is {who}.")
    from ray_tune_memguard.diagnostics.deaths.driver import what_ended_it

    reason = what_ended_it(begin, file) or (
        f"The driver of its last run ({who}) recorded no end: it was killed, or it crashed."
    )
    return LastRun("killed", reason)


def _is_alive(begin: DriverRecord) -> bool:
    import psutil

    try:
        started: float = psutil.Process(begin.pid).create_time()
    except psutil.Error:
        return False
    # Otherwise another process has the number by now.
    return started <= begin.time + _CLOCK_TOLERANCE_S
