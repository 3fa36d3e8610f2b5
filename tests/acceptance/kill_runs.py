"""One killed sweep: start a driver, kill it, restore what it left in another one, and compare.

The parent's side; it never imports Ray. What happened is read from the log of the trials
(``kill_log``), which belongs to neither rival, and from what the restored sweep returns.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.runner import ROOT, scratch_directory
from tests.acceptance.kill_hooks import AIM_VARIABLE
from tests.acceptance.kill_log import (
    BEGIN,
    COMPLETE,
    FIT,
    KILL,
    LOG_VARIABLE,
    OPENED,
    RESTORE,
    START,
    Line,
    read_log,
)
from tests.acceptance.processes import MARK_VARIABLE, end_marked, new_mark

#: A trial that finished so long before the kill is to be safe.
SETTLED_SECONDS = 0.2
_POLL_SECONDS = 0.01
#: Added to the moment of a random kill, which would else always follow the end of a trial.
_JITTER_SECONDS = 0.5
_LOG_LINES_KEPT = 15
_STACK_LINES_KEPT = 200

Show = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """A sweep and when its driver is to be killed.

    ``share``: of the sweep, when the kill is at random: 0 is the first experiment checkpoint in the
    storage, 1 the end of the last trial. ``aim`` (with ``share``): ``AIM:INSTANT`` of
    ``kill_hooks``; the driver kills itself at the first such instant after that share.
    """

    rival: str
    trials: int
    seed: int
    share: float
    aim: str = ""
    searcher: str = "variants"
    checkpoint_seconds: float | None = None
    timeout: float = 600.0
    #: Whose Ray begins the sweep, and whose restores it.
    begin_python: str = sys.executable
    restore_python: str = sys.executable

    def arguments(self) -> list[str]:
        """Return the command line of both drivers."""
        line = ["--rival", self.rival, "--searcher", self.searcher]
        line += ["--trials", str(self.trials), "--seed", str(self.seed)]
        if self.checkpoint_seconds is not None:
            line += ["--checkpoint-seconds", str(self.checkpoint_seconds)]
        return line


@dataclass
class Outcome:
    """What became of a killed sweep. Without ``failure`` all figures are there."""

    plan: Plan
    #: Why the run says nothing, or less than all: the driver was not killed, or hung, or failed.
    failure: str = ""
    #: Seconds from ``fit()`` to the kill.
    killed_at: float | None = None
    finished: int = 0
    #: Of these, at least ``SETTLED_SECONDS`` before the kill.
    settled: int = 0
    #: Settled before the kill, and run again after it.
    ran_again: int = 0
    #: Whether ``Tuner.restore(...).fit()`` could read what the kill had left.
    opened: bool = False
    #: Seconds from the call of ``Tuner.restore`` to the first step.
    restore_seconds: float | None = None
    results: int = 0
    distinct: int = 0
    #: Settled before the kill, and not among the results.
    lost: int = 0
    #: Settled before the kill, and another score now; or a score that the config does not give.
    changed: int = 0
    #: Results whose trial is not TERMINATED, or that have an error or no score.
    unfinished: int = 0
    #: Results without the line that the trial reported.
    without_history: int = 0
    statuses: dict[str, int] = field(default_factory=dict)

    @property
    def doubled(self) -> int:
        """Return how many results there are of a trial that has one already."""
        return self.results - self.distinct

    @property
    def missing(self) -> int:
        """Return how many trials there are less than asked for."""
        return max(0, self.plan.trials - self.distinct)

    @property
    def surplus(self) -> int:
        """Return how many trials there are more than asked for."""
        return max(0, self.distinct - self.plan.trials)

    @property
    def is_whole(self) -> bool:
        """Return whether all results are there, once and as they were, and the run ended well."""
        counts = (self.doubled, self.lost, self.changed, self.missing, self.surplus)
        return not self.failure and self.opened and not any((*counts, self.unfinished))

    @property
    def was_killed(self) -> bool:
        """Return whether there was a kill to recover from."""
        return self.killed_at is not None

    def as_json(self) -> dict[str, Any]:
        """Return everything for the results file."""
        derived = {name: getattr(self, name) for name in ("doubled", "missing", "surplus")}
        written = asdict(self) | derived
        for place in ("begin_python", "restore_python"):  # Paths of this machine.
            del written["plan"][place]
        return written


class _Hung(Exception):
    """A driver did not end in time."""


class _Failed(Exception):
    """A driver ended otherwise than it should have."""


def kill_and_restore(
    plan: Plan, storage: Path | None = None, show: Show = lambda _: None
) -> Outcome:
    """Carry the plan out in a directory of its own, below ``storage``, which is deleted after it.

    Never raises for what a driver does: the outcome says it.
    """
    with scratch_directory(storage) as directory:
        return _Run(plan, directory, show).outcome()


class _Run:
    def __init__(self, plan: Plan, directory: Path, show: Show) -> None:
        self._plan = plan
        self._directory = directory
        self._show = show
        self._mark = new_mark()
        self._storage = directory / "s"
        self._out = directory / "restored.json"

    def outcome(self) -> Outcome:
        outcome = Outcome(self._plan)
        try:
            self._kill(outcome)
            self._restore(outcome)
        except (_Hung, _Failed) as error:
            outcome.failure = str(error)
        except OSError as error:
            outcome.failure = f"the run itself: {error}"
        finally:
            end_marked(self._mark)
        return outcome

    def _kill(self, outcome: Outcome) -> None:
        log = self._directory / "begin"
        driver = self._start("begin", log)
        killed_at = self._await_aimed(driver, log) if self._plan.aim else self._shoot(driver, log)
        end_marked(self._mark)
        lines = read_log(log)
        finished = [line for line in lines if line.kind == COMPLETE and line.time <= killed_at]
        outcome.killed_at = killed_at - next(line.time for line in lines if line.kind == FIT)
        outcome.finished = len(finished)
        self._settled = {
            line.trial_id: line.score
            for line in finished
            if line.time <= killed_at - SETTLED_SECONDS
        }
        outcome.settled = len(self._settled)

    def _shoot(self, driver: subprocess.Popen[bytes], log: Path) -> float:
        """Kill the driver when its share of the sweep is done; return when."""
        follower = _Follower(log)
        first: int | None = None
        for _ in self._polls(driver, "begin"):
            if driver.poll() is not None:
                raise _Failed(f"not killed: {self._ending(driver, 'begin')}")
            finished = follower.finished()
            if first is None and any(self._storage.glob("*/experiment_state-*.json")):
                first = finished
            self._show(f"{finished:,}/{self._plan.trials:,} trials, not killed yet")
            if first is None:
                continue
            if finished >= first + self._plan.share * (self._plan.trials - first):
                time.sleep(random.Random(self._plan.seed).uniform(0, _JITTER_SECONDS))
                now = time.time()
                driver.kill()
                if driver.wait() != -signal.SIGKILL:
                    raise _Failed(f"not killed: {self._ending(driver, 'begin')}")
                return now
        raise AssertionError

    def _await_aimed(self, driver: subprocess.Popen[bytes], log: Path) -> float:
        """Wait until the driver has killed itself; return when."""
        follower = _Follower(log)
        for _ in self._polls(driver, "begin"):
            finished = follower.finished()
            self._show(f"{finished:,}/{self._plan.trials:,} trials, not killed yet")
            if driver.poll() is not None:
                break
        last_words = [line for line in read_log(log) if line.kind == KILL]
        if driver.returncode != -signal.SIGKILL or not last_words:
            raise _Failed(f"not killed: {self._ending(driver, 'begin')}")
        return last_words[0].time

    def _restore(self, outcome: Outcome) -> None:
        log = self._directory / "restore"
        driver = self._start("restore", log)
        follower = _Follower(log)
        try:
            for _ in self._polls(driver, "restore"):
                self._show(f"restored, {follower.finished():,} trials more")
                if driver.poll() is not None:
                    break
        finally:
            self._read_restore_log(outcome, read_log(log))
        if driver.returncode != 0:
            raise _Failed(f"restore: {self._ending(driver, 'restore')}")
        self._compare(outcome, json.loads(self._out.read_text()))

    def _read_restore_log(self, outcome: Outcome, lines: list[Line]) -> None:
        times = {line.kind: line.time for line in reversed(lines)}
        outcome.opened = OPENED in times
        if outcome.opened and BEGIN in times:
            outcome.restore_seconds = times[BEGIN] - times[RESTORE]
        ran = {line.trial_id for line in lines if line.kind == START}
        outcome.ran_again = len(ran & self._settled.keys())

    def _compare(self, outcome: Outcome, record: dict[str, Any]) -> None:
        trials, results = record["trials"], record["results"]
        outcome.results = len(results)
        outcome.distinct = len({trial["id"] for trial in trials})
        for trial in trials:
            count = outcome.statuses.get(trial["status"], 0)
            outcome.statuses[trial["status"]] = count + 1
        scores = {result["id"]: result["score"] for result in results}
        outcome.lost = len(self._settled.keys() - scores.keys())
        outcome.changed = sum(
            trial["score"] is not None and trial["score"] != trial["expected"] for trial in trials
        ) + sum(scores.get(name, before) != before for name, before in self._settled.items())
        outcome.unfinished = sum(trial["status"] != "TERMINATED" for trial in trials)
        outcome.unfinished += sum(
            result["score"] is None or result["error"] is not None for result in results
        )
        outcome.without_history = sum(result["reports"] == 0 for result in results)

    def _start(self, act: str, log: Path) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        environment[MARK_VARIABLE] = self._mark
        environment[LOG_VARIABLE] = str(log)
        environment.pop(AIM_VARIABLE, None)
        if self._plan.aim and act == "begin":
            after = round(self._plan.share * self._plan.trials)
            environment[AIM_VARIABLE] = f"{self._plan.aim}:{after}"
        python = self._plan.begin_python if act == "begin" else self._plan.restore_python
        command = [python, "-m", "tests.acceptance.kill_sweep", act, *self._plan.arguments()]
        command += ["--storage", str(self._storage), "--out", str(self._out)]
        command += ["--ray-directory", str(self._directory / act[0])]
        with self._output(act).open("wb") as output:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _output(self, act: str) -> Path:
        return self._directory / f"{act}.out"

    def _polls(self, driver: subprocess.Popen[bytes], act: str) -> Any:
        """Yield until the time is over; then end the driver and raise."""
        deadline = time.monotonic() + self._plan.timeout
        while time.monotonic() < deadline:
            yield
            time.sleep(_POLL_SECONDS)
        # Makes the driver write its threads' stacks.
        driver.send_signal(signal.SIGUSR1)
        time.sleep(1.0)
        driver.kill()
        driver.wait()
        tail = self._tail(act, _STACK_LINES_KEPT)
        raise _Hung(f"hung: the {act} driver did not end in {self._plan.timeout:.0f} s.\n{tail}")

    def _ending(self, driver: subprocess.Popen[bytes], act: str) -> str:
        tail = self._tail(act, _LOG_LINES_KEPT)
        return f"the {act} driver ended with {driver.returncode}. Its log:\n{tail}"

    def _tail(self, act: str, lines: int) -> str:
        text = self._output(act).read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])


class _Follower:
    """Counts the finished trials in a log that grows."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._read = 0
        self._finished = 0

    def finished(self) -> int:
        if self._log.exists():
            with self._log.open("rb") as file:
                file.seek(self._read)
                text = file.read()
            # A line that is being written is left for the next time.
            text = text[: text.rfind(b"\n") + 1]
            self._read += len(text)
            start = f"{COMPLETE} ".encode()
            self._finished += sum(line.startswith(start) for line in text.split(b"\n"))
        return self._finished
