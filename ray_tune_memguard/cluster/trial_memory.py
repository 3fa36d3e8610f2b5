"""What the running trials of a run use, on all nodes, and what the finished ones have used.

:class:`TrialMemories` is the view that others read, from any thread. Who measures tells it which
trial has which actor (:meth:`~TrialMemories.start`, :meth:`~TrialMemories.end`) and lets a thread
call :meth:`~TrialMemories.look`. Nothing here waits for another node.

A finished trial leaves a record, which its reader takes and writes to disk, and its peaks among
those of the 256 trials that finished last.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from ray_tune_memguard.cluster import gcs
from ray_tune_memguard.cluster.probe import Answer, NoAnswerError, NodeProbes
from ray_tune_memguard.report.line import fit_line
from ray_tune_memguard.report.readings import RunningTrial
from ray_tune_memguard.report.sizes import size as size_text
from ray_tune_memguard.report.trial_memory import TrialMemory
from ray_tune_memguard.system.process_tree import (
    ProcessKey,
    TreeReading,
    begin_reading,
    read_tree,
    read_trees,
)

#: Growth is that over so many looks.
MAX_POINTS = 30
#: Quantiles are those of so many finished trials, the latest ones.
MAX_FINISHED = 256
#: So many of the trials that used most are remembered.
MAX_HEAVIEST = 3
# Actors of which it is known that they have run a trial before; more if more trials run.
_MAX_ACTORS = 256
#: A reading of another node is expected within this time; the first one may start a probe.
MAX_WAIT_S = 5.0
MAX_FIRST_WAIT_S = 60.0
_MAX_CONFIG_TEXT = 120
# As many characters of a node's id as tell nodes apart.
_SHORT_NODE = 8
#: A difference of so many bytes is not distinguished.
MAX_HIDDEN = 2 * 2**20

Kind = Literal["rss", "anonymous"]
_KINDS: tuple[Kind, Kind] = ("rss", "anonymous")


@dataclass(frozen=True)
class TrialUse:
    """What a running trial uses, all of its processes together.

    Attributes:
        trial_id: the trial.
        node: the id of its node.
        pid: its process on that node.
        rss, anonymous: bytes at the last look (see ``system/process_tree.py`` for the terms).
        peak_rss, peak_anonymous: the highest of them since the trial started, in bytes; at least
            the sampled ones, and between two looks what the kernel tells.
        growth: of the anonymous memory over the last 30 looks, in bytes per second; NaN at first.
        processes: how many processes there were at the last look.
        started: when the trial started, by ``time.time()``.
        looked_at: the time of the last look, by ``time.time()``.
    """

    trial_id: str
    node: str
    pid: int
    rss: int
    anonymous: int
    peak_rss: int
    peak_anonymous: int
    growth: float
    processes: int
    started: float
    looked_at: float


class TreePeaks:
    """The peaks of one trial, from the readings of its processes.

    Attributes:
        rss, anonymous: the peaks in bytes; 0 before the first reading.
        last: the last reading.
        children: the highest number of descendants.
    """

    def __init__(self) -> None:
        self.rss = self.anonymous = 0
        self.last: TreeReading | None = None
        self.children = 0
        self._highest: dict[ProcessKey, int] = {}
        self._shared: dict[ProcessKey, int] = {}
        self._points: deque[tuple[float, int]] = deque(maxlen=MAX_POINTS)

    def begin(self, reading: TreeReading, is_fresh: bool) -> None:
        """The first reading of a process.

        Args:
            reading: what it uses now.
            is_fresh: whether its highest RSS so far belongs to this trial.
        """
        if not is_fresh:
            processes = (reading.root, *reading.children)
            self._highest = {process.key: process.highest_rss for process in processes}
        self._points.clear()
        self.add(reading)

    def add(self, reading: TreeReading) -> None:
        """One more reading."""
        processes = (reading.root, *reading.children) if reading.children else (reading.root,)
        # What one process had more than now at some time since the last reading.
        more = more_anonymous = 0
        for process in processes:
            if process.highest_rss > self._highest.get(process.key, 0):
                more = max(more, process.highest_rss - process.rss)
                # What was mapped and shared then is not told: as much as at the reading with more.
                shared = max(process.rss - process.anonymous, self._shared.get(process.key, 0))
                anonymous_then = process.highest_rss - shared
                more_anonymous = max(more_anonymous, anonymous_then - process.anonymous)
        anonymous = reading.anonymous
        self.rss = max(self.rss, reading.rss + more)
        self.anonymous = max(self.anonymous, anonymous + more_anonymous)
        self.children = max(self.children, len(reading.children))
        # Where the highest RSS was not read, it is at least the present RSS.
        self._highest = {
            process.key: process.highest_rss or max(self._highest.get(process.key, 0), process.rss)
            for process in processes
        }
        self._shared = {process.key: process.rss - process.anonymous for process in processes}
        self._points.append((reading.at, anonymous))
        self.last = reading

    def growth(self) -> float:
        """Bytes per second, or NaN."""
        points = list(self._points)
        line = fit_line([at for at, _ in points], [size for _, size in points])
        return math.nan if line is None or len(points) < 3 else line.slope


@dataclass(eq=False)
class _Tracked:
    """A trial that has not finished.

    Attributes:
        key: its process; None while that is unknown, or while the trial does not run.
        is_located: whether its process is known, or cannot be found.
        is_asked: whether its first reading was asked for before it ended.
        is_seen: whether the process that runs it now was looked at.
        is_exact: whether the kernel has told all peaks so far.
        is_gone: whether the process was found to have ended. The trial may run again.
        is_finished: whether its record was made.
        ending: how the trial has ended, while its last reading is awaited.
    """

    trial_id: str
    config: dict[str, object]
    started: float
    actor_id: str = ""
    node: str = ""
    key: ProcessKey | None = None
    pid: int = 0
    starts: int = 0
    is_located: bool = False
    is_asked: bool = False
    is_reused: bool = False
    is_seen: bool = False
    is_exact: bool = True
    is_gone: bool = False
    is_finished: bool = False
    ending: str = ""
    ended: float = math.nan
    peaks: TreePeaks = field(default_factory=TreePeaks)


@dataclass
class _Awaited:
    answer: Answer[Any]
    then: Callable[[Any], None]
    until: float


class FinishedPeaks:
    """The peaks of finished trials: quantiles of the latest ones, and the highest of all.

    Attributes:
        count: the number of trials that have finished in this run and were measured.
    """

    def __init__(self) -> None:
        self.count = 0
        # Rings of a fixed size: nothing grows, not even over the first trials.
        self._rings = {kind: array("q", bytes(8 * MAX_FINISHED)) for kind in _KINDS}
        self._highest = dict.fromkeys(_KINDS, 0)

    def add(self, rss: int, anonymous: int) -> None:
        for kind, peak in zip(_KINDS, (rss, anonymous), strict=True):
            self._rings[kind][self.count % MAX_FINISHED] = peak
            self._highest[kind] = max(self._highest[kind], peak)
        self.count += 1

    def quantile(self, share: float, kind: Kind = "anonymous") -> int | None:
        """A peak that this share of the latest 256 trials did not exceed, in bytes.

        Args:
            share: from 0 to 1; 1 is the highest peak of all trials of the run.
            kind: of which figure.

        Returns:
            Bytes; None if no trial has finished.
        """
        if not self.count:
            return None
        if share >= 1:
            return self._highest[kind]
        peaks = sorted(self.latest(kind))
        return peaks[min(len(peaks) - 1, int(share * len(peaks)))]

    def latest(self, kind: Kind = "anonymous") -> list[int]:
        """The peaks of the latest 256 trials, in bytes, the oldest first."""
        count, ring = self.count, self._rings[kind]
        oldest = count % MAX_FINISHED
        return [*ring[oldest:], *ring[:oldest]] if count > MAX_FINISHED else list(ring[:count])


class TrialMemories:
    """What the trials of one run use. Any thread may read it.

    Attributes:
        finished: the peaks of the finished trials.

    Examples:
        >>> from ray_tune_memguard.cluster.trial_memory import TrialMemories
        >>> memories = TrialMemories()
        >>> memories.running(), memories.of("6a3f_00001"), memories.finished.quantile(0.9)
        ([], None, None)
    """

    def __init__(self) -> None:
        self.finished = FinishedPeaks()
        self._lock = threading.RLock()
        self._probes: NodeProbes | None = None
        self._max_actors = _MAX_ACTORS
        self._tracked: dict[str, _Tracked] = {}
        self._to_locate: deque[_Tracked] = deque()
        # By actor: its node and process. The actors that were used last.
        self._actors: OrderedDict[str, tuple[str, int]] = OrderedDict()
        self._awaited: list[_Awaited] = []
        self._asked_nodes: set[str] = set()
        self._turns: Counter[str] = Counter()
        self._records: list[TrialMemory] = []
        # The count tells apart what is equal: configurations cannot be compared.
        self._heaviest: list[tuple[int, str, int, dict[str, object]]] = []
        self._observers: list[Callable[[TrialMemory], None]] = []

    # What others read.

    @property
    def is_measured(self) -> bool:
        """Whether a callback measures the trials of this run."""
        return self._probes is not None

    def running(self, node: str | None = None) -> list[TrialUse]:
        """What the running trials use that have been looked at, the largest first.

        Args:
            node: the id of a node; None for all nodes.
        """
        with self._lock:
            tracked = [one for one in self._running() if node in (None, one.node)]
            uses = [use for one in tracked if (use := _use_of(one)) is not None]
        return sorted(uses, key=lambda use: -use.anonymous)

    def sizes(self) -> list[RunningTrial]:
        """The sizes alone of the running trials that have been looked at, in any order."""
        with self._lock:
            return [
                RunningTrial(one.trial_id, one.node, last.rss, last.anonymous)
                for one in self._running()
                if (last := one.peaks.last) is not None
            ]

    def _running(self) -> Iterator[_Tracked]:
        return (
            one
            for one in self._tracked.values()
            if one.key is not None and not one.is_gone and not one.ending
        )

    def of(self, trial_id: str) -> TrialUse | None:
        """What a trial used at the last look, also if its process has just ended.

        Returns:
            None if the trial was not looked at since it started, or has finished.
        """
        with self._lock:
            tracked = self._tracked.get(trial_id)
            return None if tracked is None else _use_of(tracked)

    def observe(self, observer: Callable[[TrialMemory], None]) -> None:
        """Call ``observer`` with the record of each trial that finishes from now on.

        Any thread may call it, so it does little.
        """
        self._observers.append(observer)

    def heaviest(self) -> list[tuple[int, str, dict[str, object]]]:
        """The finished trials that used most: peak RSS in bytes, trial id and configuration."""
        with self._lock:
            ordered = sorted(self._heaviest, key=lambda one: -one[0])
        return [(peak, trial_id, config) for peak, trial_id, _, config in ordered]

    def running_text(self) -> str:
        """What the running trials use, and the ones that use most; empty if none was measured."""
        uses = self.running()
        if not uses:
            return ""
        several = len({use.node for use in uses}) > 1
        most = ", ".join(
            f"{use.trial_id} {size_text(use.anonymous)}"
            + (f" on {use.node[:_SHORT_NODE]}" if several else "")
            for use in uses[:MAX_HEAVIEST]
        )
        total = size_text(sum(use.anonymous for use in uses))
        return f"trials {total}: {most}" + (", …" if len(uses) > MAX_HEAVIEST else "")

    def summary(self) -> str:
        """The trials of the run that used most; empty if none was measured."""
        median = self.finished.quantile(0.5, "rss")
        if median is None:
            return ""
        most = "; ".join(
            f"{size_text(peak)} by {trial_id}" + (f" ({_config_text(config)})" if config else "")
            for peak, trial_id, config in self.heaviest()
        )
        count = self.finished.count
        return (
            f"Memory of {count} trial{'s' if count > 1 else ''}: the median of their peaks is "
            f"{size_text(median)} RSS; the highest are {most}."
        )

    # What measures.

    def measure_with(self, probes: NodeProbes | None, keeps_actors: bool = True) -> None:
        """Begin to measure, or end it.

        Args:
            probes: what asks the nodes; None to end.
            keeps_actors: whether an actor may run several trials.
        """
        self._probes = probes
        self._max_actors = _MAX_ACTORS if keeps_actors else 0

    def start(self, trial_id: str, actor_id: str, config: dict[str, object]) -> bool:
        """A trial starts to run, or runs again, in an actor.

        Returns:
            Whether a look is needed to find its process.
        """
        with self._lock:
            tracked = self._tracked.get(trial_id)
            if tracked is None or tracked.ending:
                tracked = self._tracked[trial_id] = _Tracked(trial_id, config, time.time())
            tracked.actor_id, tracked.config = actor_id, config
            # What its last process used at its end is not known.
            tracked.is_exact = tracked.starts == 0
            tracked.starts += 1
            tracked.key = None
            tracked.is_located = tracked.is_seen = tracked.is_asked = False
            place = self._actors.get(actor_id)
            if place is not None:
                self._leave(actor_id, tracked)
                tracked.is_reused = True
            else:
                self._to_locate.append(tracked)
        if place is not None:
            self._begin(tracked, *place)
        return place is None

    def pause(self, trial_id: str) -> None:
        """A trial does not run for now."""
        with self._lock:
            tracked = self._tracked.get(trial_id)
            if tracked is not None and not tracked.ending:
                tracked.key = None

    def end(self, trial_id: str, how: str) -> None:
        """A trial has finished.

        Args:
            trial_id: the trial.
            how: ``completed``, ``error`` or ``unfinished``.
        """
        with self._lock:
            tracked = self._tracked.get(trial_id)
            if tracked is None or tracked.ending:
                return
            tracked.ending = how
            tracked.ended = time.time()
            key, is_located, is_asked = tracked.key, tracked.is_located, tracked.is_asked
        if key is not None:
            self._ask(tracked.node, read_tree, (key,), lambda last: self._finish(tracked, last))
        elif is_located:
            self._finish(tracked, None)
        elif is_asked:
            self._ask_last(tracked)
        # Otherwise it is finished when its process is found.

    def _ask_last(self, tracked: _Tracked) -> None:
        """Ask for the last reading of a trial whose first one has not come yet."""

        def receive(last: TreeReading | None) -> None:
            if tracked.key is None:
                self._begun(tracked, last, is_last=True)
            else:
                is_same = last is not None and last.root.key == tracked.key
                self._finish(tracked, last if is_same else None)

        self._ask(tracked.node, begin_reading, (tracked.pid, False), receive, MAX_FIRST_WAIT_S)

    def end_all(self, timeout_s: float) -> None:
        """The run ends: so do all trials. Waits for the last readings of other nodes."""
        with self._lock:
            left = list(self._tracked)
        self.locate()
        for trial_id in left:
            self.end(trial_id, "unfinished")
        until = time.monotonic() + timeout_s
        for awaited in list(self._awaited):
            awaited.answer.is_ready(max(0.0, until - time.monotonic()))
        self._collect(is_last=True)

    def look(self) -> None:
        """Read all running trials. Called at intervals, by one thread."""
        self.locate()
        self._collect()
        with self._lock:
            by_node: dict[str, list[tuple[_Tracked, ProcessKey]]] = {}
            for tracked in self._tracked.values():
                if tracked.key is not None and not tracked.ending:
                    by_node.setdefault(tracked.node, []).append((tracked, tracked.key))
        for node, ones in by_node.items():
            # A node that has not answered is asked again when it has.
            if node not in self._asked_nodes:
                self._asked_nodes.add(node)
                self._ask_all_of(node, ones)

    def take_records(self) -> list[TrialMemory]:
        """The records of the trials that have finished since the last call."""
        with self._lock:
            records, self._records = self._records, []
        return records

    def _ask_all_of(self, node: str, ones: list[tuple[_Tracked, ProcessKey]]) -> None:
        def receive(readings: list[TreeReading | None] | None) -> None:
            self._asked_nodes.discard(node)
            for (tracked, key), reading in zip(ones, readings or (), strict=False):
                self._add(tracked, key, reading)

        # A node that is slow to answer is not asked at each look.
        self._turns[node] += 1
        self._ask(node, read_trees, ([key for _, key in ones], self._turns[node]), receive)

    def _add(self, tracked: _Tracked, key: ProcessKey, reading: TreeReading | None) -> None:
        with self._lock:
            if tracked.key != key:  # It has moved meanwhile.
                return
            tracked.is_gone = reading is None
            if reading is None:
                tracked.is_exact = False
            else:
                tracked.peaks.add(reading)

    def locate(self) -> None:
        """Find the processes of trials that have started."""
        while True:
            with self._lock:
                if not self._to_locate:
                    return
                tracked = self._to_locate.popleft()
                actor_id = tracked.actor_id
            try:
                actor = gcs.actor_info(actor_id)
            except gcs.ClusterStateError:
                actor = None
            if actor is None or not actor.pid or not actor.node_id:
                self._begun(tracked, None, is_last=False)
                continue
            with self._lock:
                self._actors[actor_id] = actor.node_id, actor.pid
                # One that is forgotten hands the peak of its trial on to the next one.
                kept = self._max_actors and max(self._max_actors, 2 * len(self._tracked))
                while len(self._actors) > kept:
                    self._actors.popitem(last=False)
            self._begin(tracked, actor.node_id, actor.pid)

    def _begin(self, tracked: _Tracked, node: str, pid: int) -> None:
        with self._lock:
            tracked.node, tracked.pid = node, pid
            has_ended = bool(tracked.ending)
            tracked.is_asked = not has_ended
            actor_id, is_reused = tracked.actor_id, tracked.is_reused

        def receive(reading: TreeReading | None) -> None:
            if tracked.actor_id == actor_id:
                self._begun(tracked, reading, is_last=has_ended)

        self._ask(node, begin_reading, (pid, is_reused), receive, MAX_FIRST_WAIT_S)

    def _begun(self, tracked: _Tracked, reading: TreeReading | None, is_last: bool) -> None:
        with self._lock:
            tracked.is_located = True
            if reading is None:
                tracked.is_exact = False
            else:
                tracked.key = reading.root.key
                tracked.is_gone = False
                tracked.is_seen = True
                # Ray gives an actor no worker that has run tasks, so a new one's peak is its own.
                tracked.peaks.begin(reading, is_fresh=not tracked.is_reused)
                # Where it could not be reset, it hides what is lower than earlier trials' peaks.
                hidden = reading.root.highest_rss - reading.root.rss
                if tracked.is_reused and hidden > MAX_HIDDEN:
                    tracked.is_exact = False
            # One that was asked for its last reading is finished by that.
            is_last = is_last or (bool(tracked.ending) and not tracked.is_asked)
        if is_last:
            self._finish(tracked, reading)

    def _leave(self, actor_id: str, new: _Tracked) -> None:
        """Another trial takes the actor over from a paused one."""
        self._actors.move_to_end(actor_id)
        for tracked in self._tracked.values():
            if tracked.actor_id == actor_id and tracked is not new and not tracked.ending:
                tracked.key = None

    def _finish(self, tracked: _Tracked, last: TreeReading | None) -> None:
        with self._lock:
            # One that was started twice in a short time is located twice.
            if tracked.is_finished:
                return
            tracked.is_finished = True
            if self._tracked.get(tracked.trial_id) is tracked:
                del self._tracked[tracked.trial_id]
            peaks = tracked.peaks
            if last is not None:
                peaks.add(last)
            if peaks.last is None:
                return
            tells_peak = last is not None and last.root.highest_rss > 0
            is_exact = tracked.is_exact and tells_peak and not peaks.children
            record = _record_of(tracked, is_exact)
            self._records.append(record)
            for observer in self._observers:
                observer(record)
            self.finished.add(peaks.rss, peaks.anonymous)
            heavy = (peaks.rss, tracked.trial_id, self.finished.count, tracked.config)
            heapq.heappush(self._heaviest, heavy)
            if len(self._heaviest) > MAX_HEAVIEST:
                heapq.heappop(self._heaviest)

    def _ask(
        self,
        node: str,
        function: Callable[..., Any],
        args: tuple[object, ...],
        then: Callable[[Any], None],
        wait_s: float = MAX_WAIT_S,
    ) -> None:
        """Ask a node, and call ``then`` with the answer: now on this node, otherwise later.

        ``then`` gets None if there is no answer within ``wait_s`` seconds.
        """
        if self._probes is None:
            then(None)
            return
        answer = self._probes.ask(node, function, *args)
        if answer.is_ready():
            then(_value_of(answer))
        else:
            with self._lock:
                self._awaited.append(_Awaited(answer, then, time.monotonic() + wait_s))

    def _collect(self, is_last: bool = False) -> None:
        """Use the answers that have come; give up those that are late."""
        now = time.monotonic()
        with self._lock:
            awaited, self._awaited = self._awaited, []
        for one in awaited:
            if one.answer.is_ready() or is_last or now > one.until:
                one.then(_value_of(one.answer))
            else:
                with self._lock:
                    self._awaited.append(one)


def _config_text(config: dict[str, object]) -> str:
    text = ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in config.items()
    )
    return text if len(text) <= _MAX_CONFIG_TEXT else f"{text[:_MAX_CONFIG_TEXT]}…"


def _value_of(answer: Answer[Any]) -> Any:
    try:
        return answer.get()
    except NoAnswerError:
        return None


def _use_of(tracked: _Tracked) -> TrialUse | None:
    peaks = tracked.peaks
    if peaks.last is None or not tracked.is_seen:
        return None
    return TrialUse(
        trial_id=tracked.trial_id,
        node=tracked.node,
        pid=tracked.pid,
        rss=peaks.last.rss,
        anonymous=peaks.last.anonymous,
        peak_rss=peaks.rss,
        peak_anonymous=peaks.anonymous,
        growth=peaks.growth(),
        processes=1 + len(peaks.last.children),
        started=tracked.started,
        looked_at=peaks.last.at,
    )


def _record_of(tracked: _Tracked, is_exact: bool) -> TrialMemory:
    peaks = tracked.peaks
    assert peaks.last is not None
    return TrialMemory(
        trial_id=tracked.trial_id,
        end=tracked.ending,
        peak_rss_bytes=peaks.rss,
        peak_anonymous_bytes=peaks.anonymous,
        last_rss_bytes=peaks.last.rss,
        last_anonymous_bytes=peaks.last.anonymous,
        growth_bytes_per_s=peaks.growth(),
        is_exact=is_exact,
        children=peaks.children,
        is_reused=tracked.is_reused,
        starts=tracked.starts,
        node=tracked.node,
        pid=tracked.pid,
        started=tracked.started,
        ended=tracked.ended,
        config=tracked.config,
    )
