"""When a trial may start: the decision, the forecast behind it, and the gate that remembers."""

from __future__ import annotations

import random
import statistics

import pytest

from ray_tune_memguard.gate.admission import MAX_ALLOWANCE, NodeView, Rules, decide
from ray_tune_memguard.gate.forecast import MIN_PEAKS, Forecast
from ray_tune_memguard.gate.gate import DECIDE_AGAIN_S, OPEN_AFTER_S, Gate
from ray_tune_memguard.gate.interfaces import TrialUsage
from ray_tune_memguard.gate.level import LEVEL_S, LevelWatch
from ray_tune_memguard.report.gate_records import GateRecord
from ray_tune_memguard.system.node_memory import MACHINE, NodeMemory


def limit(used: int, total: int = 100, source: str = MACHINE) -> NodeMemory:
    return NodeMemory(used, total, source)


def trial(now: int = 0, peak: int | None = None, *, is_level: bool = False) -> TrialUsage:
    return TrialUsage("node", now, now if peak is None else peak, is_level)


RULES = Rules(pause=0.9, resume=0.8)
SLOW = Rules(pause=0.9, resume=0.8, slow_start=True)
GIVEN = Rules(pause=0.9, resume=0.8, memory_per_trial=20)


@pytest.mark.parametrize(
    ("node", "rules", "allowance", "reason"),
    [
        # Nothing is known: only what is used counts.
        (NodeView([limit(50)], [trial()]), RULES, MAX_ALLOWANCE, ""),
        (NodeView([limit(89)], [trial()]), RULES, MAX_ALLOWANCE, ""),
        (NodeView([limit(90)], [trial()]), RULES, 0, "not below 90%"),
        # A full node waits until it is below `resume`.
        (NodeView([limit(85)], [trial()], was_full=True), RULES, 0, "not below 80%"),
        (NodeView([limit(79)], [trial()], was_full=True), RULES, MAX_ALLOWANCE, ""),
        (NodeView([limit(85)], [trial()]), RULES, MAX_ALLOWANCE, ""),
        # A node without a running trial admits one, whatever its memory is.
        (NodeView([limit(99)]), RULES, 1, ""),
        (NodeView([limit(99)], was_full=True), RULES, 1, ""),
        (NodeView([limit(50)], (), [80]), RULES, 1, ""),
        (NodeView([limit(50)]), SLOW, 1, ""),
        # Where there is room, an empty node admits all that fit.
        (NodeView([limit(50)]), RULES, MAX_ALLOWANCE, ""),
        (NodeView([], (), [80]), RULES, MAX_ALLOWANCE, ""),
        (NodeView([limit(10)], (), [40]), RULES, 2, ""),
        # What is used, what the running trials will take, and the next one: 40 + 20 + 30.
        (NodeView([limit(40)], [trial(10)], [30]), RULES, 1, ""),
        (NodeView([limit(41)], [trial(10)], [30]), RULES, 0, "together more than 90%"),
        (NodeView([limit(10)], [trial(10)], [20]), RULES, 2, ""),
        # A trial that has passed all others counts with what it has used.
        (NodeView([limit(40)], [trial(40, 50)], [30]), RULES, 0, "together more than 90%"),
        (NodeView([limit(40)], [trial(40, 40)], [30]), RULES, 1, ""),
        # A trial that is not measured yet will take all of it.
        (NodeView([limit(31)], [trial(), trial()], [20]), RULES, 0, "2 running trials"),
        # The trials that run tell something before the first has finished.
        (NodeView([limit(41)], [trial(20, 30)]), RULES, 1, ""),
        (NodeView([limit(51)], [trial(20, 30)]), RULES, 0, "together more than 90%"),
        # The user has said what a trial needs; more is more.
        (NodeView([limit(50)], [trial()]), GIVEN, 1, ""),
        (NodeView([limit(51)], [trial()]), GIVEN, 0, "together more than 90%"),
        (NodeView([limit(50)], [trial()], [5]), GIVEN, 1, ""),
        (NodeView([limit(50)], [trial()], [30]), GIVEN, 0, "together more than 90%"),
        # Slow start: one trial, until a size is known.
        (NodeView([limit(10)], [trial(5)]), SLOW, 0, "slow_start"),
        (NodeView([limit(10)], [trial(5, is_level=True)]), SLOW, 16, ""),
        (NodeView([limit(10)], [trial(5)], [5]), SLOW, 16, ""),
        (NodeView([limit(10)], [trial(5)]), Rules(slow_start=True, memory_per_trial=40), 1, ""),
        # Both limits must hold.
        (NodeView([limit(10), limit(10, 20, "/job")], [trial()], [5]), RULES, 0, "/job"),
        (NodeView([limit(10), limit(18, 20, "/job")], [trial()]), RULES, 0, "/job"),
        (NodeView([limit(90), limit(1, 20, "/job")], [trial()]), RULES, 0, MACHINE),
        # Of a node whose memory is not known nothing is decided.
        (NodeView([], [trial(5)], [1000]), RULES, MAX_ALLOWANCE, ""),
    ],
)
def test_the_decision(node: NodeView, rules: Rules, allowance: int, reason: str) -> None:
    decision = decide(node, rules)
    assert decision.allowance == allowance
    assert reason in decision.reason
    assert bool(decision.reason) == (allowance == 0)


def test_the_sum_of_many_trials_stays_below_the_forecast() -> None:
    # One trial of ten is twenty times as large. The largest peak for each would be far too much.
    draw = random.Random(1)

    def peaks(count: int) -> list[int]:
        return [20_000 if draw.random() < 0.1 else 1_000 for _ in range(count)]

    finished = peaks(200)
    forecast = Forecast([TrialUsage("node", 500, 500)] * 8, finished).growth()
    sums = [sum(peaks(8)) - 8 * 500 for _ in range(2000)]
    assert statistics.mean(total <= forecast for total in sums) > 0.9
    assert forecast < 0.4 * 8 * 20_000


def test_a_trial_that_has_outgrown_the_small_ones_is_a_large_one() -> None:
    finished = [10] * 20 + [100] * 20
    assert Forecast([TrialUsage("node", 11, 11)], finished).growth() == 89
    assert Forecast([TrialUsage("node", 120, 150)], finished).growth() == 30


def test_equal_trials_are_forecast_exactly() -> None:
    forecast = Forecast([TrialUsage("node", 30, 30)], [100] * MIN_PEAKS)
    assert (forecast.growth(), forecast.growth(more=2), forecast.next_peak) == (70, 270, 100)


class FakeRun:
    """A node of 100 bytes with trials of 20; the memory is what a test sets."""

    def __init__(self, rules: Rules = RULES) -> None:
        self.now = 0.0
        self.used = {"node": 10}
        self.usages: dict[str, TrialUsage] = {}
        self.peaks: list[int] = []
        self.records: list[GateRecord] = []
        self.looks = self.lists = 0
        self.gate = Gate(rules, self, self, self.live, self.records.append, lambda: self.now)

    def nodes(self) -> list[str]:
        return list(self.used)

    def limits(self, node: str) -> list[NodeMemory]:
        self.looks += 1
        return [limit(self.used[node])]

    def running(self) -> dict[str, TrialUsage]:
        return self.usages

    def finished_peaks(self) -> list[int]:
        return self.peaks

    def live(self) -> list[tuple[str, str]]:
        self.lists += 1
        return [(trial_id, usage.node) for trial_id, usage in self.usages.items()]

    def start(self) -> bool:
        if not self.gate.admits("node"):
            return False
        self.gate.start(["node"])
        self.usages[f"trial{len(self.usages)}"] = TrialUsage("node")
        return True

    def actions(self) -> list[str]:
        return [record.action for record in self.records]


def test_the_gate_starts_what_fits_and_reports_the_pause_once() -> None:
    run = FakeRun()
    run.peaks = [20] * 20
    assert [run.start() for _ in range(5)] == [True, True, True, True, False]
    for _ in range(20):
        run.now += 0.1
        assert not run.start()
    assert run.actions() == ["pause"]
    [record] = run.records
    assert (record.node, record.running, record.expected_bytes) == ("node", 4, 20)
    assert (record.used_bytes, record.total_bytes, record.source) == (10, 100, MACHINE)
    # One ends, one starts: the pause goes on.
    run.usages.popitem()
    run.now += 1
    assert run.start()
    run.now += OPEN_AFTER_S - 1
    assert not run.start()
    run.gate.tick()
    assert run.actions() == ["pause"]
    run.now += OPEN_AFTER_S
    run.gate.tick()
    run.gate.tick()
    assert run.actions() == ["pause", "resume"]
    assert (run.records[-1].started, run.records[-1].seconds) == (1, 12.0)


def test_no_pause_lasts_longer_than_its_run() -> None:
    run = FakeRun()
    run.peaks = [20] * 20
    while run.start():
        pass
    run.now += 3
    [record] = run.gate.end()
    assert (record.action, record.reason, record.seconds) == ("resume", "the run ends", 3.0)
    assert not run.gate.is_paused("node")
    assert run.gate.end() == []


class MeasuresWhenAsked(FakeRun):
    """Knows the peak of a trial that was running when somebody asked."""

    def __init__(self) -> None:
        super().__init__()
        self.measured: set[str] = set()

    def running(self) -> dict[str, TrialUsage]:
        self.measured |= self.usages.keys()
        return self.usages

    def finished_peaks(self) -> list[int]:
        return [40 for _ in self.measured - self.usages.keys()]


def test_trials_are_measured_while_none_waits() -> None:
    run = MeasuresWhenAsked()
    assert [run.start() for _ in range(4)] == [True] * 4
    for _ in range(3):
        run.now += 1.0
        run.gate.tick()
    # They end together.
    run.usages = {}
    assert [run.start() for _ in range(4)] == [True, True, False, False]


def test_with_ample_memory_the_gate_looks_once_a_second() -> None:
    run = FakeRun()
    run.used["node"] = 1
    assert run.start()
    looks = run.looks
    for _ in range(500):
        run.now += 0.001
        assert run.start()
    assert run.looks == looks
    assert not run.records


def test_an_empty_node_is_not_asked_again_for_each_start_elsewhere() -> None:
    run = FakeRun()
    run.used = {"node": 1, "empty": 1}
    run.usages = {"a": TrialUsage("node")}
    for _ in range(500):
        assert run.gate.admits_everywhere(run.nodes())
        run.gate.start(run.nodes())
    assert run.looks == 2


def test_the_trials_are_listed_once_for_all_nodes() -> None:
    run = FakeRun()
    run.used = {f"node{number}": 95 for number in range(50)}
    run.usages = {f"trial{number}": TrialUsage(f"node{number}") for number in range(50)}
    assert not any(run.gate.admits(node) for node in run.nodes())
    # One for the decisions; a record is made for each of the nodes at the same time.
    assert run.lists == 1
    # What has ended is noticed at the next decision.
    del run.usages["trial7"]
    run.now += DECIDE_AGAIN_S
    assert [node for node in run.nodes() if run.gate.admits(node)] == ["node7"]
    assert run.lists == 2
    # What has started, at once.
    run.gate.start(["node7"])
    run.usages["trial7"] = TrialUsage("node7")
    assert not run.gate.admits("node7")
    assert run.lists == 3


def test_a_node_with_nothing_running_never_waits() -> None:
    run = FakeRun(Rules(pause=0.9, resume=0.8, slow_start=True, memory_per_trial=1000))
    run.used["node"] = 99
    for _ in range(10):
        assert run.start()
        assert not run.start()
        run.usages.clear()
        run.now += 0.3


def test_each_node_has_its_own_gate() -> None:
    run = FakeRun()
    run.used = {"node": 95, "other": 10}
    run.usages = {"a": TrialUsage("node", 5, 5), "b": TrialUsage("other", 5, 5)}
    assert not run.gate.admits_everywhere(run.nodes())
    assert not run.records
    assert not run.gate.admits("node")
    assert run.gate.admits("other")
    assert [record.node for record in run.records] == ["node"]


def test_a_trial_that_has_stopped_growing_is_level() -> None:
    now = [0.0]
    watch = LevelWatch(lambda: now[0])
    assert not watch.update({"a": 100, "b": 100})
    now[0] = LEVEL_S - 1
    assert not watch.update({"a": 101, "b": 110})
    now[0] = LEVEL_S
    assert watch.update({"a": 101, "b": 110}) == {"a"}
    # The same id again is a new start.
    assert not watch.update({"b": 110})
    assert not watch.update({"a": 101, "b": 110})


def test_a_trial_that_ends_may_leave_its_process_to_the_next_one() -> None:
    run = FakeRun()
    run.peaks = [40] * MIN_PEAKS
    run.used["node"] = 90
    run.usages = {"a": TrialUsage("node", 40, 40), "b": TrialUsage("node", 40, 40)}
    # Full: its memory is returned first.
    assert not run.gate.admits_successor("node", "a")
    run.used["node"] = 85
    run.now += 1
    assert not run.gate.admits_successor("node", "a")
    # Two of 40 fit into 90, but not three.
    run.used["node"] = 79
    run.now += 1
    assert not run.gate.admits("node")
    run.usages["a"] = TrialUsage("node", 35, 40)
    assert run.gate.admits_successor("node", "a")


def test_processes_that_are_about_to_end_hold_memory() -> None:
    full = NodeView([limit(95)], stopping=1)
    assert decide(full, RULES).allowance == 0
    assert decide(NodeView([limit(50)], stopping=1), RULES).allowance == MAX_ALLOWANCE
