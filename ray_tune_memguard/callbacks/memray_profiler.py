"""Profiles chosen trials by memray: which line of their code allocates the memory."""

from __future__ import annotations

import re
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ray import cloudpickle

from ray_tune_memguard import options as opt
from ray_tune_memguard.adapter import boundary, contract
from ray_tune_memguard.adapter.boundary import Policy
from ray_tune_memguard.adapter.claims import SPILLING
from ray_tune_memguard.callbacks.base import GuardCallback, guarded
from ray_tune_memguard.callbacks.profile_choice import (
    Choice,
    ChosenTrials,
    FirstTrials,
    LargestTrials,
)
from ray_tune_memguard.callbacks.recording import RunRecords
from ray_tune_memguard.notices import logger
from ray_tune_memguard.report.profile_records import FILE_PREFIX, KIND, State, TrialProfile
from ray_tune_memguard.report.sizes import size
from ray_tune_memguard.report.trial_memory import TrialMemory

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem
    from ray.tune.experiment import Trial

    from ray_tune_memguard.cluster.probe import NodeProbes
    from ray_tune_memguard.cluster.profiled_process import Settings
    from ray_tune_memguard.cluster.profiling import RemoteProfile, Saved

FIRST, LARGEST = "first", "largest"
KEEP = 5
MAX_SIZE = "2 GiB"
#: The end of the run waits so long for profiles that are being written and copied.
MAX_WAIT_AT_END_S = 15.0
#: After so many trials in a row that could not be profiled no more is tried.
MAX_FAILURES = 3
_LOOK_AT_END_EVERY_S = 0.02
_NO_FILE_NAME = re.compile(r"[^\w.-]+")
_PREFIX = "profile_"


@dataclass
class _Profile:
    """A profile that is not complete.

    Attributes:
        trial: the trial, while it is not known what ends the profile.
        directory: the trial's, in ``filesystem``.
        record: the last one written, or the next one.
        has_begun: whether the trial's process has said so.
        end: what ended the profile; None while it runs.
        saved: what the thread that copies will return; None until the profile has ended.
    """

    trial: Trial | None
    remote: RemoteProfile
    filesystem: FileSystem
    directory: str
    record: TrialProfile
    has_begun: bool = False
    end: State | None = None
    saved: Future[Saved | None] | None = None


@dataclass
class _State:
    """The state of one run.

    Attributes:
        profiles: those that are not complete, by trial.
        started: trials that have started in this run; it is decided only once about each.
        kept: complete profiles whose files are there.
        removals: the threads that remove files.
        copying: held while a profile is copied, so that no two are in memory at a time.
        failures: the number of trials in a row, the last ones, that could not be profiled.
        total: the number of trials that were profiled.
    """

    choice: Choice
    probes: NodeProbes
    records: RunRecords
    profiles: dict[str, _Profile] = field(default_factory=dict)
    started: weakref.WeakSet[Trial] = field(default_factory=weakref.WeakSet)
    kept: list[_Profile] = field(default_factory=list)
    removals: list[threading.Thread] = field(default_factory=list)
    copying: threading.Lock = field(default_factory=threading.Lock)
    failures: int = 0
    total: int = 0


class MemrayProfiler(GuardCallback):
    """Profiles chosen trials by `memray <https://bloomberg.github.io/memray/>`_::

        tune.RunConfig(callbacks=[MemGuard(), MemrayProfiler()])

    or, without a change of code, add ``ray_tune_memguard.MemrayProfiler`` to
    ``RAY_TUNE_CALLBACKS``. A profile tells which line of the trial's code has allocated the memory
    at the trial's peak. ``memguard profile EXPERIMENT`` prints these lines and writes flame graphs.

    Memray runs in the trial's own process, on any node, and the trial's code does not change. What
    a class trainable allocates in ``setup`` is not seen, because the process begins with that. The
    profile is in the trial's directory when the trial has finished, and in the directory of the
    Ray session's logs on the trial's node. A profile whose files have more than 64 MiB is there
    only.

    A profile ends when its trial finishes, fails or pauses; a trial is profiled once. The
    environment of the trials must have memray (the extra ``profile``), else one line says so, and
    the run continues. A profiled trial is slower, most of all one that allocates many small
    objects; others are not.

    Args:
        trials: the trials to profile: ``"first"``; a number, of those that start first;
            ``"largest"``, those that are expected to need more memory than those that were
            profiled before, by the memory of finished trials with near configurations, as a
            :class:`TrialMemoryReporter` or :class:`MemGuard` of the same run measures it; or a
            function of a trial (``trial.trial_id``, ``trial.config``), which can be pickled and
            returns whether to profile it. Default ``"first"``, or ``TUNE_MEMGUARD_PROFILE_TRIALS``.
        keep: how many profiles stay. Of more, those of trials that failed and those with the
            highest peaks do. Default: as many as ``trials``, if that is a number, otherwise 5; or
            ``TUNE_MEMGUARD_PROFILE_KEEP``.
        native: whether frames of C and C++ code are recorded, too, which costs more. Default
            False, or ``TUNE_MEMGUARD_PROFILE_NATIVE``.
        survive_kill: whether a profile can be read after its process was killed, as by an
            out-of-memory killer. It has a record of each allocation then, and a file of some MB
            per million of them. Default False, or ``TUNE_MEMGUARD_PROFILE_SURVIVE_KILL``.
        follow_fork: whether processes that the trial forks, such as a data loader's workers, get
            profiles of their own, each in a file ``….bin.<pid>``. Each allocation is recorded then,
            too. Default False, or ``TUNE_MEMGUARD_PROFILE_FOLLOW_FORK``.
        max_size: bytes, also as text with a unit, at which a profile that records each allocation
            ends. It also ends when 95 % of the disk is used. What it has by then can be read.
            Files of forked processes count. Default ``"2 GiB"``, or
            ``TUNE_MEMGUARD_PROFILE_MAX_SIZE``.

    Raises:
        ValueError, TypeError: an argument, or its environment variable, is not allowed.

    Examples:
        >>> from ray import tune
        >>> from ray_tune_memguard import MemGuard, MemrayProfiler
        >>> config = tune.RunConfig(callbacks=[MemGuard(), MemrayProfiler("largest")])
        >>> MemrayProfiler(lambda trial: trial.config["layers"] > 8).keep
        5
        >>> MemrayProfiler("last")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: trials must be 'first', 'largest', a whole number of at least 1, or a functio...
    """

    _state: _State | None = None

    def __init__(
        self,
        trials: str | int | Callable[[Trial], object] | opt.Unset = opt.UNSET,
        keep: int | opt.Unset | None = opt.UNSET,
        native: bool | opt.Unset = opt.UNSET,
        survive_kill: bool | opt.Unset = opt.UNSET,
        follow_fork: bool | opt.Unset = opt.UNSET,
        max_size: float | str | opt.Unset = opt.UNSET,
    ) -> None:
        self.trials = opt.resolve(
            "trials", trials, FIRST, opt.count_text_or_function(FIRST, LARGEST), _PREFIX
        )
        if callable(self.trials):
            _require_picklable(self.trials)
        given = opt.resolve("keep", keep, None, opt.count_or_none, _PREFIX)
        self.keep = given or (self.trials if isinstance(self.trials, int) else KEEP)
        self.native = opt.resolve("native", native, False, opt.flag, _PREFIX)
        self.survive_kill = opt.resolve("survive_kill", survive_kill, False, opt.flag, _PREFIX)
        self.follow_fork = opt.resolve("follow_fork", follow_fork, False, opt.flag, _PREFIX)
        self.max_size = opt.resolve("max_size", max_size, MAX_SIZE, opt.size, _PREFIX)
        self.options = {
            "trials": self.trials,
            "keep": given,
            "native": self.native,
            "survive_kill": self.survive_kill,
            "follow_fork": self.follow_fork,
            "max_size": self.max_size,
        }

    def begin(self) -> None:
        self._end_profiling()
        run = self.run
        if run.controller is None or contract.TRIAL_PROFILES not in run.capabilities:
            self.active = False
            reason = run.capabilities.warning() or "No Ray Tune controller called this callback."
            # The callback that spills has told what this Ray lacks.
            if run.owner_of(SPILLING) is None:
                self.notices.warn("profiles", f"No trial is profiled. {reason}")
            return
        if not self.claim("profiles"):
            return
        probes = run.node_probes(self)
        assert probes is not None
        records = RunRecords(run, KIND, type(self).__name__, self.notices)
        self._state = _State(self._choice(), probes, records)
        run.observe_stops(self)

    def disable(self, error: Exception) -> None:
        super().disable(error)
        self._end_profiling()

    @guarded
    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        state = self._state
        handle = self.run.actor_of(trial)
        if state is None or handle is None or trial in state.started:
            return
        state.started.add(trial)
        if (
            state.failures >= MAX_FAILURES
            or not self._can_choose()
            or not state.choice.wants(trial)
        ):
            return
        from ray_tune_memguard.cluster.profiling import RemoteProfile

        filesystem, directory = self.run.directory_of(trial)
        experiment = PurePosixPath(directory).parent.name
        # With the time: a later run may profile the same trial.
        began = time.strftime("%Y-%m-%d_%H-%M-%S")
        name = _NO_FILE_NAME.sub("_", f"{experiment}-{trial.trial_id}-{began}")
        remote = RemoteProfile(handle, f"{FILE_PREFIX}{name}.bin", self._settings())
        record = TrialProfile(trial.trial_id, "running", time.time())
        state.profiles[trial.trial_id] = _Profile(trial, remote, filesystem, directory, record)

    @guarded
    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        state = self._state
        if state is None or not state.profiles:
            return
        for one in list(state.profiles.values()):
            # Ray calls no hook for it.
            if one.trial is not None and one.trial.status not in ("RUNNING", "PENDING"):
                self._end(one, "paused" if one.trial.status == "PAUSED" else "unfinished")
            self._advance(state, one, trials)

    @guarded
    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        self._end_trial(trial, "completed")

    @guarded
    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        self._end_trial(trial, "error")

    @guarded
    def on_experiment_end(self, trials: list[Trial], **info: object) -> None:
        state = self._state
        if state is None:
            return
        # Ray calls no hooks for trials that end with the experiment.
        for one in state.profiles.values():
            self._end(one, "unfinished")
        until = time.monotonic() + MAX_WAIT_AT_END_S
        while state.profiles and time.monotonic() < until:
            for one in list(state.profiles.values()):
                self._advance(state, one, trials)
            time.sleep(_LOOK_AT_END_EVERY_S)
        for one in list(state.profiles.values()):
            if one.has_begun:
                self._complete(state, one, trials, note="The run ended before it was copied.")
        for removal in state.removals:
            removal.join(max(0.0, until - time.monotonic()))
        self._summarize(state)
        self._end_profiling()

    def before_stop(self, trial: Trial, is_failure: bool) -> None:
        """End the trial's profile before Ray asks its actor to stop."""
        one = None if self._state is None else self._state.profiles.get(trial.trial_id)
        if one is not None:
            one.remote.stop()
            if is_failure:
                self._end(one, "error")

    def _choice(self) -> Choice:
        if callable(self.trials):
            return ChosenTrials(self.trials, self._report_choice)
        if self.trials != LARGEST:
            return FirstTrials(1 if isinstance(self.trials, str) else self.trials)
        largest = LargestTrials()

        def observe(record: TrialMemory) -> None:
            largest.add(record.trial_id, record.config, record.peak_rss_bytes)

        self.run.trial_memory().observe(observe)
        return largest

    def _report_choice(self, error: Exception) -> None:
        self.notices.warn(
            "choice",
            f"The function that chooses the trials to profile raised {error!r}. Such trials are "
            "not profiled. Further occurrences are not logged.",
        )

    def _can_choose(self) -> bool:
        if self.trials != LARGEST or self.run.trial_memory().is_measured:
            return True
        self.notices.warn(
            "unmeasured",
            'No trial is profiled: MemrayProfiler("largest") needs a MemGuard() or a '
            "TrialMemoryReporter() in the same run, which measures the trials "
            "(trial_memory_every_seconds).",
        )
        return False

    def _settings(self) -> Settings:
        return {
            "native": self.native,
            "follow_fork": self.follow_fork,
            "survive_kill": self.survive_kill,
            "max_size": self.max_size,
        }

    def _end_trial(self, trial: Trial, how: State) -> None:
        state = self._state
        if state is not None and trial.trial_id in state.profiles:
            self._end(state.profiles[trial.trial_id], how)

    def _end(self, one: _Profile, how: State) -> None:
        """Ask the trial's process to end the profile, if nothing has, and note what ended it."""
        if one.end is None:
            one.end = how
            one.trial = None
            one.remote.stop()

    def _advance(self, state: _State, one: _Profile, trials: list[Trial]) -> None:
        """Begin, end, copy: as far as what is asked for has come."""
        if not one.has_begun:
            self._look_for_begin(state, one, trials)
        if one.has_begun and one.end is not None and one.saved is None:
            self._look_for_end(state, one)
        if one.saved is not None and one.saved.done():
            saved = one.saved.result()
            if saved is None:
                self._complete(state, one, trials, note="It could not be copied.")
                return
            directory = PurePosixPath(one.directory).name
            if saved.names:
                one.record = replace(
                    one.record, file=f"{directory}/{saved.names[0]}", children=saved.names[1:]
                )
            one.record = replace(one.record, size_bytes=saved.size)
            self._complete(state, one, trials, note=saved.note)

    def _look_for_begin(self, state: _State, one: _Profile, trials: list[Trial]) -> None:
        begun = one.remote.begun()
        if begun is None:
            return
        one.record = replace(
            one.record,
            node=begun.get("node", ""),
            address=begun.get("address", ""),
            pid=begun.get("pid", 0),
            path=begun.get("path", ""),
        )
        if "problem" in begun:
            self._give_up(state, one, begun["problem"])
            return
        one.has_begun = True
        state.failures = 0
        state.total += 1
        state.records.add(trials, one.record)
        # So that a probe is there when the profile ends.
        state.probes.ask(one.record.node, _nothing)

    def _give_up(self, state: _State, one: _Profile, problem: str) -> None:
        from ray_tune_memguard.cluster.profiled_process import MISSING

        trial_id = one.record.trial_id
        del state.profiles[trial_id]
        state.failures += 1
        state.choice.give_up(trial_id)
        topic = problem
        if problem == MISSING:
            problem = (
                f"memray is not installed in its environment on node {one.record.address} "
                '(pip install "ray-tune-memguard[profile]")'
            )
            topic = MISSING
        self.notices.warn(topic, f"Trial {trial_id} is not profiled: {problem}. The run continues.")
        if state.failures == MAX_FAILURES and topic != MISSING:
            self.notices.warn(
                "no more",
                f"No further trial is profiled in this run, because {MAX_FAILURES} in a row could "
                "not be.",
            )

    def _look_for_end(self, state: _State, one: _Profile) -> None:
        ended = one.remote.ended()
        if ended is None:
            return
        if "problem" in ended:
            note = f"It did not end properly ({ended['problem']})."
        elif ended["early"]:
            note = f"It ended before the trial, because {ended['early']}."
        else:
            note = ""
        one.record = replace(one.record, peak_bytes=ended.get("peak", 0), note=note)
        one.saved = Future()
        threading.Thread(
            target=_save, args=(state, one, one.saved), name="memguard-profile", daemon=True
        ).start()

    def _complete(self, state: _State, one: _Profile, trials: list[Trial], note: str) -> None:
        assert one.end is not None
        del state.profiles[one.record.trial_id]
        note = f"{one.record.note} {note}".strip()
        one.record = replace(one.record, state=one.end, time=time.time(), note=note)
        state.records.add(trials, one.record)
        state.kept.append(one)
        if len(state.kept) > self.keep:
            self._remove(state, min(state.kept, key=_worth), trials)

    def _remove(self, state: _State, one: _Profile, trials: list[Trial]) -> None:
        state.kept.remove(one)
        removal = threading.Thread(
            target=_REMOVE, args=(state.probes, one), name="memguard-profile", daemon=True
        )
        removal.start()
        state.removals = [*(one for one in state.removals if one.is_alive()), removal]
        removed = replace(one.record, state="removed", file="", children=(), path="", note="")
        state.records.add(trials, replace(removed, time=time.time()))

    def _summarize(self, state: _State) -> None:
        if not state.total:
            if not state.failures:
                self.notices.remark("none", f"No trial was profiled (trials={self.trials!r}).")
            return
        if not state.kept:  # None has come to its end.
            return
        highest = max(state.kept, key=lambda one: one.record.peak_bytes).record
        logger.info(
            "%d trial%s profiled%s. `memguard profile %s` shows which lines allocate the memory.",
            state.total,
            "s were" if state.total > 1 else " was",
            f"; the highest known peak is {size(highest.peak_bytes)} by {highest.trial_id}"
            if highest.peak_bytes
            else "",
            PurePosixPath(state.kept[0].directory).parent,
        )

    def _end_profiling(self) -> None:
        state, self._state = self._state, None
        if state is not None:
            state.probes.give_back(self)
            for one in state.profiles.values():
                self._end(one, "unfinished")


def _nothing() -> None:
    """What a node is asked to start its probe."""


def _require_picklable(function: Callable[..., object]) -> None:
    try:
        cloudpickle.dumps(function)
    except Exception as error:
        raise ValueError(
            f"trials must be a function that can be pickled, because Ray saves callbacks with the "
            f"experiment; got {function!r} ({error})"
        ) from error


def _worth(one: _Profile) -> tuple[bool, bool, int]:
    record = one.record
    return bool(record.size_bytes), one.end == "error", record.peak_bytes


def _save(state: _State, one: _Profile, saved: Future[Saved | None]) -> None:
    """The target of the thread."""
    with state.copying:
        saved.set_result(_SAVE(state.probes, one))


@boundary.entry("MemrayProfiler.save", Policy.KEEP)
def _save_files(probes: NodeProbes, one: _Profile) -> Saved:
    from ray_tune_memguard.cluster.profiling import save_files

    record = one.record
    return save_files(probes, record.node, record.path, one.filesystem, one.directory)


@boundary.entry("MemrayProfiler.remove", Policy.KEEP)
def _remove_files(probes: NodeProbes, one: _Profile) -> None:
    from ray_tune_memguard.cluster.profiling import remove_saved

    record = one.record
    names = [PurePosixPath(record.file).name, *record.children] if record.file else []
    files = tuple(f"{one.directory}/{name}" for name in names)
    remove_saved(probes, record.node, record.path, one.filesystem, files)


_SAVE, _REMOVE = _save_files.on_its_own(), _remove_files.on_its_own()
