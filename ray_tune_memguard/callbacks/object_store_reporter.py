"""Follows what stays in Ray's object store, and names who holds it if it grows with the trials."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_tune_memguard import options as opt
from ray_tune_memguard.callbacks.base import guarded
from ray_tune_memguard.callbacks.counting import CountingCallback
from ray_tune_memguard.callbacks.pacing import Pace
from ray_tune_memguard.callbacks.recording import RunRecords
from ray_tune_memguard.cluster import core_names
from ray_tune_memguard.notices import logger
from ray_tune_memguard.report.object_records import KIND, StoreRecord
from ray_tune_memguard.report.sizes import size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ray.tune.experiment import Trial

    from ray_tune_memguard.cluster.object_holders import Holder, Holding
    from ray_tune_memguard.cluster.object_store import StoreReading, StoreWatch
    from ray_tune_memguard.cluster.probe import Answer, NodeProbes
    from ray_tune_memguard.cluster.raylet import RayletReport, WorkerObjects
    from ray_tune_memguard.diagnostics.steady_growth import Growth, GrowthSeries, Rule

#: Seconds between two looks, at least.
OBJECTS_EVERY_SECONDS = 0.1
#: Finished trials between two looks, unless more time passes than that. A leak is to be named
#: within 100 trials; a trend needs five looks or more.
_FIRST_TRIALS = 10
_EVERY_TRIALS = 25
#: Trials over which growth is judged, at least; before the first judgement, and between two.
_MIN_TRIALS = 40
_JUDGE_FROM = 50
_JUDGE_EVERY = 20
_JUDGE_EVERY_SHARE = 0.2
# Fewer tell nothing, and are not judged: a fast sweep finishes fifty trials in three looks.
_MIN_LOOKS = 5
# The last judgement of a run is one more only if it has so much that the one before had not.
_MIN_LOOKS_AT_END = 2
#: So many judgements in a row must find growth: fluctuation alone may look like it once.
_MIN_JUDGEMENTS = 2
_MIN_PER_TRIAL = 16 * 2**10
_MIN_GROWTH = 4 * 2**20
#: Trials that run hold objects until they end. Growth over fewer trials than so many times the
#: running ones may be that.
_PER_RUNNING_TRIAL = 4
#: A leak is named without what all nodes together have not answered after this time; at the end of
#: the run after the second one.
_MAX_WAIT_S = 10.0
_MAX_WAIT_AT_END_S = 1.0
_STORE = "store"


@dataclass
class _StoreState:
    """The state of one run.

    Attributes:
        records: the file of measurements.
        pace: when to look again.
        probes, watch: the way to the stores; None before the first look.
        series: what stays in the store, by trials; None before the first look.
        last: the last reading.
        judged_trials, judged_looks: finished trials and looks at the last judgement.
        growing: judgements in a row that found growth.
        asked, asked_at: who holds objects, by node, while that is asked for.
        is_named: whether a leak has been logged.
    """

    records: RunRecords
    pace: Pace
    probes: NodeProbes | None = None
    watch: StoreWatch | None = None
    series: GrowthSeries | None = None
    last: StoreReading | None = None
    judged_trials: int = 0
    judged_looks: int = 0
    growing: int = 0
    asked: dict[str, Answer[RayletReport | None]] | None = None
    asked_at: float = 0.0
    is_named: bool = False


class ObjectStoreReporter(CountingCallback):
    """Says whether trials leave objects behind in Ray's object store, and who holds them::

        trial#76  object store: 14.6 MiB stay in it (14.6 MiB in memory, 0 B on disk), +195
        KiB/trial. Who holds them: driver (pid 4711) 14.6 MiB in 76 objects (LOCAL_REFERENCE) …

    The figure that it follows is what stays until nothing refers to it: primary copies in memory,
    and what is spilled to disk now. Copies that were made for reading do not count, and neither
    do objects that running trials hold until they end. It logs a leak once. The experiment's
    directory keeps all measurements; :func:`ray_tune_memguard.read_object_store` reads them.

    With ``grpcio`` (extra ``objects``) it names who holds the objects. A look is made by a thread
    and never waits for another node. On each other node a small actor reads what is on disk there.

    Args:
        objects_every_seconds: seconds between two looks, at least; None for no looks. Between two
            looks 25 trials finish (10 at first), or a minute passes. Default 0.1, or
            ``TUNE_MEMGUARD_OBJECTS_EVERY_SECONDS``.

    Raises:
        ValueError, TypeError: the argument, or its environment variable, is not allowed.

    Examples:
        >>> from ray_tune_memguard import ObjectStoreReporter
        >>> reporter = ObjectStoreReporter(objects_every_seconds=10)
        >>> reporter.latest() is None, reporter.bytes_per_trial() is None  # No run has begun.
        (True, True)
    """

    _state: _StoreState | None = None

    def __init__(self, objects_every_seconds: float | opt.Unset | None = opt.UNSET) -> None:
        self.objects_every_seconds = opt.resolve(
            "objects_every_seconds",
            objects_every_seconds,
            OBJECTS_EVERY_SECONDS,
            opt.seconds_or_none,
        )
        self.options = {"objects_every_seconds": self.objects_every_seconds}

    def begin(self) -> None:
        super().begin()
        records = RunRecords(self.run, KIND, "ObjectStoreReporter", self.notices)
        self._state = _StoreState(records, Pace(self.objects_every_seconds))
        self.claim("object store")

    def latest(self) -> StoreReading | None:
        """What the stores of all nodes held at the last look.

        Returns:
            Capacity, primary copies, and what is spilled now, in bytes; None before the first look.

        Examples:
            >>> from ray_tune_memguard import ObjectStoreReporter
            >>> ObjectStoreReporter().latest() is None
            True
        """
        return None if self._state is None else self._state.last

    def bytes_per_trial(self) -> float | None:
        """By how much primary copies and spilled objects grow for each finished trial.

        Returns:
            Bytes; None before 40 trials have finished.

        Examples:
            >>> from ray_tune_memguard import ObjectStoreReporter
            >>> ObjectStoreReporter().bytes_per_trial() is None
            True
        """
        state = self._state
        return None if state is None or state.series is None else self._growth(state).per_trial

    def on_first_step(self) -> None:
        state = self._state
        if state is not None:
            state.pace.count_from(self._finished.total)
            state.judged_trials = self._finished.total

    @guarded
    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        self._finished.count_step()
        state = self._state
        if state is None:
            return
        if state.watch is not None and state.watch.is_looking:
            self._receive(state, trials)
        elif state.asked is not None:
            self._name_if_told(state, trials, _MAX_WAIT_S)
        elif state.pace.is_due(self._finished.total, self._every_trials(state)):
            self._look(state)

    def on_run_end(self, trials: list[Trial]) -> None:
        state = self._state
        if state is None:
            return
        if state.watch is not None and state.probes is not None:
            if not state.watch.is_looking:
                self._look(state)
            self._receive(state, trials, _MAX_WAIT_AT_END_S, is_last=True)
            until = time.monotonic() + _MAX_WAIT_AT_END_S
            for answer in (state.asked or {}).values():
                answer.is_ready(max(0.0, until - time.monotonic()))
            self._name_if_told(state, trials, 0.0)
            state.probes.give_back(self)
        self.active = False

    def _every_trials(self, state: _StoreState) -> int:
        finished = self._finished.total - state.pace.before
        return _FIRST_TRIALS if finished <= 100 else _EVERY_TRIALS

    def _look(self, state: _StoreState) -> None:
        with state.pace.timed():
            if state.watch is None:
                from ray_tune_memguard.cluster.object_store import StoreWatch
                from ray_tune_memguard.diagnostics.steady_growth import GrowthSeries

                state.series = GrowthSeries(state.pace.before, state.pace.began)
                state.probes = self.run.node_probes(self)
                if state.probes is None:
                    self.active = False
                    return
                state.watch = StoreWatch(state.probes)
            state.pace.count_look(self._finished.total)
            state.watch.look()

    def _receive(
        self,
        state: _StoreState,
        trials: list[Trial],
        timeout_s: float = 0.0,
        is_last: bool = False,
    ) -> None:
        from ray_tune_memguard.cluster.probe import NoAnswerError

        assert state.watch is not None
        assert state.series is not None
        try:
            reading = state.watch.take(timeout_s)
        except NoAnswerError as error:
            self.notices.warn(
                "store", f"The object store is not measured ({error}). The run continues."
            )
            return
        if reading is None:
            return
        # It was read in another thread.
        state.pace.spent_s += reading.seconds
        with state.pace.timed():
            self.notices.again("store")
            state.last = reading
            state.series.add(self._finished.total, time.monotonic(), {_STORE: reading.held})
            state.records.add(trials, self._record(state))
            self._judge(state, is_last)

    def _record(self, state: _StoreState, leak: str = "") -> StoreRecord:
        assert state.last is not None
        last = state.last
        return StoreRecord(
            time.time(), self._finished.total, last.capacity, last.primary, last.spilled, leak
        )

    def _judge(self, state: _StoreState, is_last: bool) -> None:
        """Ask who holds objects if what stays in the store grows with the trials."""
        finished = self._finished.total - state.pace.before
        since = self._finished.total - state.judged_trials
        is_first = finished == since
        wanted = max(_JUDGE_FROM if is_first else _JUDGE_EVERY, _JUDGE_EVERY_SHARE * finished)
        # A fast sweep may end between two judgements.
        has_news = state.pace.looks - state.judged_looks >= _MIN_LOOKS_AT_END
        is_due = since >= wanted or (is_last and state.growing > 0 and has_news)
        if state.is_named or state.asked is not None or not is_due or state.pace.looks < _MIN_LOOKS:
            return
        state.judged_trials, state.judged_looks = self._finished.total, state.pace.looks
        state.growing = state.growing + 1 if self._growth(state).is_steady else 0
        if state.growing >= _MIN_JUDGEMENTS:
            self._ask_for_holders(state)

    def _growth(self, state: _StoreState) -> Growth:
        assert state.series is not None
        return state.series.growth_of(_STORE, self._rule())

    def _rule(self) -> Rule:
        from ray_tune_memguard.diagnostics.steady_growth import Rule

        running = self.run.running_trials()
        return Rule(
            warm_up_trials=running,
            min_trials=max(_MIN_TRIALS, _PER_RUNNING_TRIAL * running),
            min_per_trial=_MIN_PER_TRIAL,
            min_hours=math.inf,
            min_per_hour=0,
            min_growth=_MIN_GROWTH,
        )

    def _ask_for_holders(self, state: _StoreState) -> None:
        from ray_tune_memguard.cluster.object_holders import read_references

        assert state.probes is not None
        probes, state.asked_at = state.probes, time.monotonic()
        state.asked = {}
        if core_names.OBJECT_OWNERS not in self.run.capabilities:
            return
        for node in probes.nodes():
            if node == probes.own_node:
                state.asked[node] = probes.ask_here(read_references, node)
            else:
                state.asked[node] = probes.ask(node, read_references, node)

    def _name_if_told(self, state: _StoreState, trials: list[Trial], within_s: float) -> None:
        """Log the leak once all nodes have told who holds objects, or the time is over."""
        asked = state.asked
        if asked is None:
            return
        is_late = time.monotonic() - state.asked_at >= within_s
        if not is_late and not all(answer.is_ready() for answer in asked.values()):
            return
        with state.pace.timed():
            state.asked = None
            self._name(state, trials, asked)

    def _name(
        self,
        state: _StoreState,
        trials: list[Trial],
        asked: dict[str, Answer[RayletReport | None]],
    ) -> None:
        from ray_tune_memguard.cluster import object_holders

        assert state.last is not None
        assert state.series is not None
        reports = _told(asked)
        held = object_holders.holdings(reports, self._holder_namer())
        too_many = object_holders.unlisted(reports)
        is_whole = bool(reports) and len(reports) == len(asked) and not too_many
        if is_whole and self._is_of_running_trials(state, held):
            state.growing = 0
            return
        state.is_named = True
        slope = self._growth(state).per_trial or 0.0
        last = state.last
        advice = object_holders.advice(held, too_many, is_told=bool(reports))
        text = (
            f"{size(last.held)} stay in it ({size(last.primary)} in memory, {size(last.spilled)} "
            f"on disk), +{size(slope)}/trial. {advice}"
        )
        logger.info("trial#%d  object store: %s", self._finished.total, text)
        state.records.add(trials, self._record(state, text))

    def _is_of_running_trials(self, state: _StoreState, held: Sequence[Holding]) -> bool:
        """Whether what has grown goes when the trials end that run now."""
        assert state.series is not None
        if self.run.reuses_actors() is not False:
            # Their processes go on, with what earlier trials have left in them.
            return False
        grown = state.series.grown(self._rule()).get(_STORE, 0.0)
        of_others = sum(one.size for one in held if one.holder.kind != "trial")
        return of_others < grown / 2

    def _holder_namer(self) -> Callable[[str, WorkerObjects], Holder]:
        from ray_tune_memguard.cluster.object_holders import holder_of

        trials: dict[str, dict[int, tuple[str, str]]] = {}

        def name(node: str, worker: WorkerObjects) -> Holder:
            if node not in trials:
                trials[node] = self.run.trials_by_pid(node)
            trial_id, _ = trials[node].get(worker.pid, ("", ""))
            return holder_of(worker, trial_id)

        return name


def _told(asked: Mapping[str, Answer[RayletReport | None]]) -> dict[str, RayletReport]:
    """The nodes that have told who holds objects."""
    from ray_tune_memguard.cluster.probe import NoAnswerError

    found = {}
    for node, answer in asked.items():
        try:
            report = answer.get()
        except NoAnswerError:
            continue
        if report is not None:
            found[node] = report
    return found
