"""Sweeps that end in some way and are resumed in some way, on simulated actors.

A case takes a fraction of a second, so that many combinations can be compared with Ray alone.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune import Callback, ResumeConfig, TuneError
from ray.tune.execution import tune_controller
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from benchmarks import simulated
from benchmarks.problem import METRIC
from ray_tune_memguard import MemGuard
from ray_tune_memguard.callbacks import trial_pruner
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from tests.integration import sweeps
from tests.integration.small_cluster import start_ray
from tests.integration.test_restore import Counted, copied

NUMBERS = range(12)
#: Trials to which something happens in the first run.
CHOSEN = (0, 1, 4, 7)
#: The first run ends when so many trials are finished.
FINISHED = 5


#: Endings that leave the driver no time to write anything.
KILLED = ("SIGTERM", "SIGKILL")


class OwnError(RuntimeError):
    """Raised by a user's own part, which ends the sweep."""


@dataclass(frozen=True)
class Case:
    """How a first run goes and ends, and how it is resumed."""

    end: str
    happened: str
    #: How many trials may wait for an actor.
    pending: int
    #: Whether finished trials are still in memory when the run ends.
    unspilled: bool
    #: Seconds between experiment checkpoints.
    checkpoints: str
    searcher: str
    resumed: str

    def __str__(self) -> str:
        return "-".join(str(getattr(self, field.name)) for field in fields(self))


RESUMED = {
    "default": ResumeConfig(),
    "unfinished-skipped": ResumeConfig(unfinished=ResumeConfig.ResumeType.SKIP),
    "errored-resumed": ResumeConfig(errored=ResumeConfig.ResumeType.RESUME),
    "errored-restarted": ResumeConfig(errored=ResumeConfig.ResumeType.RESTART),
    "unfinished-restarted": ResumeConfig(unfinished=ResumeConfig.ResumeType.RESTART),
    "errored-only": ResumeConfig(
        errored=ResumeConfig.ResumeType.RESUME, unfinished=ResumeConfig.ResumeType.SKIP
    ),
    "by-tune-run": "AUTO+ERRORED",
}
VALUES: dict[str, tuple[Any, ...]] = {
    "end": (
        "callback-on_step_begin",
        "callback-on_step_end",
        "searcher",
        "scheduler",
        "stopper",
        "logger",
        "SIGINT",
        "SIGTERM",
        "SIGKILL",
        "Ctrl+C twice",
        "fail_fast",
        "stopped",
    ),
    "happened": ("nothing", "errored", "retried", "paused"),
    "pending": (1, 3, 12),
    "unspilled": (False, True),
    "checkpoints": ("0", "1000"),
    "searcher": ("variants", "own"),
    "resumed": tuple(RESUMED),
}


def all_cases() -> list[Case]:
    return [Case(*values) for values in itertools.product(*VALUES.values())]


def chosen_cases(number: int) -> list[Case]:
    """So many cases in which as many pairs of values as possible occur together."""
    chance = random.Random(20)
    seen: set[tuple[Any, ...]] = set()
    chosen = []
    candidates = all_cases()
    for _ in range(number):
        some = chance.sample(candidates, 200)
        best = max(some, key=lambda case: len(_pairs(case) - seen))
        seen |= _pairs(best)
        chosen.append(best)
    return chosen


def _pairs(case: Case) -> set[tuple[Any, ...]]:
    values = [(field.name, getattr(case, field.name)) for field in fields(case)]
    return set(itertools.combinations(values, 2))


class Trainable(simulated.SimulatedTrainable):
    """Reports twice. ``happened``: what happens to the chosen trials of this run."""

    happened = "nothing"
    tries: ClassVar[Counter[int]] = Counter()

    def train(self) -> dict[str, Any]:
        number = self.config["number"]
        if self._iteration == 1 and number in CHOSEN:
            Trainable.tries[number] += 1
            if self.happened == "errored" or (
                self.happened == "retried" and Trainable.tries[number] == 1
            ):
                text = f"planned failure of {number}"
                raise RayTaskError("train", text, OwnError(text))
        return super().train()

    def save(self) -> Any:
        return ray.train._internal.session._TrainingResult(checkpoint=None, metrics={})


class ActorClass(simulated.SimulatedActorClass):
    def remote(self, *, config: dict[str, Any], **_: Any) -> Any:
        return Actor(Trainable(self.results_per_trial, config))


class Actor(simulated.SimulatedActor):
    def __getattr__(self, name: str) -> Any:
        return Method(self._trainable, name)


class Method(simulated.SimulatedMethod):
    def remote(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().remote(*args, **kwargs)
        except RayTaskError as error:
            return simulated.SimulatedRef(error)


class Events(simulated.SimulatedEvents):
    def resolve_future(self, future: Any) -> None:
        if not isinstance(future.value, RayTaskError):
            super().resolve_future(future)
            return
        _, on_error = self._tracked_futures.pop(future)
        on_error(future.value)


class ActorManager(simulated.SimulatedActorManager):
    def __init__(self, **_: Any) -> None:
        super().__init__(simulated.SimulatedResources(2, ActorClass(2)))
        self._actor_task_events = Events()


class Clock:
    """Runs that begin in the same second have files of the same names; here none do."""

    seconds = itertools.count(0, 10)

    @classmethod
    def fromtimestamp(cls, now: float) -> datetime:
        return datetime.fromtimestamp(now + next(cls.seconds))


class Ends:
    """Ends the first run, by its part ``end``, once enough trials are finished."""

    def __init__(self, case: Case, path: Path) -> None:
        self.case = case
        self.path = path
        self.is_armed = True

    def at(self, end: str, trials: Any) -> None:
        if not self.is_armed or self.case.end != end:
            return
        if sum(trial.is_finished() for trial in trials) < FINISHED:
            return
        self.is_armed = False
        if end == "SIGINT":
            os.kill(os.getpid(), signal.SIGINT)
        elif end in KILLED:
            # The driver's files as they are when it dies.
            copied(self.path, self.path.with_name("killed"))
        elif end == "Ctrl+C twice":
            raise KeyboardInterrupt
        else:
            raise OwnError(end)


class OwnCallback(Callback):
    def __init__(self, ends: Ends) -> None:
        self.ends = ends

    def on_step_begin(self, trials: list[Trial], **_: Any) -> None:
        for end in ("callback-on_step_begin", "SIGTERM"):
            self.ends.at(end, trials)

    def on_step_end(self, trials: list[Trial], **_: Any) -> None:
        for end in ("callback-on_step_end", "SIGINT", "SIGKILL", "Ctrl+C twice"):
            self.ends.at(end, trials)


class OwnLogger(tune.logger.LoggerCallback):
    def __init__(self, ends: Ends) -> None:
        self.ends = ends

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        self.ends.at("logger", trials)


class OwnScheduler(FIFOScheduler):
    """Pauses the chosen trials once."""

    def __init__(self, ends: Ends | None, pauses: bool) -> None:
        super().__init__()
        self.ends = ends
        self.pauses = pauses
        self.paused: set[str] = set()

    def on_trial_result(self, controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if self.ends is not None:
            self.ends.at("scheduler", controller.get_trials())
        if self.pauses and trial.config["number"] in CHOSEN and trial.trial_id not in self.paused:
            self.paused.add(trial.trial_id)
            return self.PAUSE
        return super().on_trial_result(controller, trial, result)


class OwnStopper(tune.Stopper):
    def __init__(self, ends: Ends | None, controller: list[Any]) -> None:
        self.ends = ends
        self.trials = controller

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self.ends is None or not self.trials:
            return False
        self.ends.at("stopper", self.trials[0])
        finished = sum(trial.is_finished() for trial in self.trials[0])
        return self.ends.case.end == "stopped" and finished >= FINISHED


class Sees(Callback):
    """Shows the list of trials to those parts that Ray does not tell it."""

    def __init__(self, seen: list[Any]) -> None:
        self.seen = seen

    def on_step_begin(self, trials: list[Trial], **_: Any) -> None:
        self.seen[:] = [trials]


class Dealer(Counted):
    """Deals each number once."""

    def __init__(self, ends: Ends | None, seen: list[Any]) -> None:
        super().__init__()
        self.ends = ends
        self.seen = seen

    def suggest(self, trial_id: str) -> Any:
        if self.ends is not None and self.seen:
            self.ends.at("searcher", self.seen[0])
        self.dealt += 1
        return {"number": self.dealt - 1}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self.told[trial_id] = result and result[METRIC]


class Variants(BasicVariantGenerator):
    ends: Ends | None = None
    seen: list[Any]

    def next_trial(self) -> Any:
        if self.ends is not None and self.seen:
            self.ends.at("searcher", self.seen[0])
        return super().next_trial()

    def get_state(self) -> Any:
        state = super().get_state()
        return {name: value for name, value in state.items() if name not in ("ends", "seen")}


def _run(case: Case, path: Path, guarded: bool, ends: Ends | None, **how: Any) -> Any:
    seen: list[Any] = []
    own = case.searcher == "own"
    search = Dealer(ends, seen) if own else Variants()
    if not own:
        search.ends, search.seen = ends, seen
    callbacks: list[Callback] = [MemGuard()] if guarded else []
    callbacks.append(Sees(seen))
    if ends is not None:
        callbacks += [OwnLogger(ends), OwnCallback(ends)]
    config = {"layers": (8, 8)} if own else {"number": tune.grid_search(list(NUMBERS))}
    fails_fast = case.end == "fail_fast" and ends is not None
    Trainable.happened = case.happened if ends is not None else "nothing"
    Trainable.tries.clear()
    return tune.run(
        _trainable,
        config=config,
        num_samples=len(NUMBERS) if own else 1,
        search_alg=search,
        scheduler=OwnScheduler(ends, pauses=case.happened == "paused" and ends is not None),
        stop=OwnStopper(ends, seen),
        max_failures=int(case.happened == "retried" and not fails_fast),
        fail_fast=fails_fast,
        metric=METRIC,
        mode="max",
        name=path.name,
        storage_path=str(path.parent),
        callbacks=callbacks,
        verbose=0,
        raise_on_failed_trial=False,
        reuse_actors=False,
        **how,
    )


def _trainable(config: dict[str, Any]) -> None:
    raise AssertionError("a simulated actor runs in its place")


_checkpoint = TuneController.checkpoint


def _checkpoint_and_wait(self: TuneController, force: bool = False, wait: bool = False) -> None:
    # What is in the storage when a driver dies is otherwise up to the clock.
    _checkpoint(self, force, wait)
    self._checkpoint_manager._storage.syncer.wait()


@contextlib.contextmanager
def _surroundings(case: Case) -> Iterator[None]:
    environment = {
        "TUNE_MAX_PENDING_TRIALS_PG": str(case.pending),
        "TUNE_GLOBAL_CHECKPOINT_S": case.checkpoints,
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    }
    # A trial that restarts gets a new id, which must be its own.
    sweeps.let_ray_number_trials()
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(tune_controller, "RayActorManager", ActorManager),
        mock.patch.object(tune_controller, "datetime", Clock),
        mock.patch.object(TuneController, "checkpoint", _checkpoint_and_wait),
        mock.patch.object(simulated, "score", lambda config, step: float(config["number"])),
        mock.patch.object(trial_pruner, "SPILL_EVERY_S", 1000.0 if case.unspilled else 0.0),
    ):
        yield


Outcome = list[tuple[Any, ...]]


def outcome(case: Case, storage: Path, guarded: bool) -> Outcome:
    """Each result of the resumed sweep: number, status, score and error."""
    path = storage / "sweep"
    with _surroundings(case):
        with contextlib.suppress(OwnError, TuneError, KeyboardInterrupt):
            _run(case, path, guarded, Ends(case, path))
        if case.end in KILLED:
            path = storage / "killed" / "sweep"
        how = RESUMED[case.resumed]
        named = {"resume": how} if isinstance(how, str) else {"resume": True, "resume_config": how}
        analysis = _run(case, path, guarded, None, **named)
    assert isinstance(analysis.trials, SpilledTrials) == guarded
    return sorted(
        (
            trial.config["number"],
            trial.status,
            trial.last_result.get(METRIC),
            sweeps.error_text(trial.get_error()),
        )
        for trial in analysis.trials
    )


def differences(case: Case, plain: Outcome, guarded: Outcome) -> list[str]:
    """What MemGuard makes otherwise than Ray alone and should not."""
    if [number for number, *_ in guarded] != [number for number, *_ in plain]:
        return [f"trials {[n for n, *_ in guarded]}, Ray alone: {[n for n, *_ in plain]}"]
    return [
        f"{mine}, Ray alone: {theirs}"
        for mine, theirs in zip(guarded, plain, strict=True)
        if mine != theirs and not (case.checkpoints != "0" and _is_known_to_us_alone(mine))
    ]


def _is_known_to_us_alone(mine: tuple[Any, ...]) -> bool:
    """Whether the trial ended in the first run; Ray alone knows what its checkpoint says."""
    number, status, score, _ = mine
    return bool(status == Trial.ERROR or score == float(number))


def main(number: int) -> None:
    """Try so many cases, or all for 0, and print those that differ from Ray alone."""
    start_ray(2)
    logging.disable(logging.ERROR)
    cases = all_cases() if number == 0 else random.Random(number).sample(all_cases(), number)
    differ = 0
    for case in cases:
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            contextlib.redirect_stdout(None),
        ):
            plain = outcome(case, Path(folder, "plain"), guarded=False)
            guarded = outcome(case, Path(folder, "guarded"), guarded=True)
        found = differences(case, plain, guarded)
        if found:
            differ += 1
            print(case, *found, sep="\n    ", flush=True)
    print(f"{differ} of {len(cases)} cases differ from Ray alone")


if __name__ == "__main__":
    main(int(sys.argv[1]))
