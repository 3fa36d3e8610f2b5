"""What trials use: peaks, actors that are reused, trials that pause, nodes that do not answer."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_tune_memguard import TrialMemoryReporter
from ray_tune_memguard.adapter import boundary, contract
from ray_tune_memguard.adapter.contract import Capabilities
from ray_tune_memguard.adapter.handle import RunHandle
from ray_tune_memguard.cluster import gcs, trial_memory
from ray_tune_memguard.cluster.gcs import ActorInfo, ClusterStateError
from ray_tune_memguard.cluster.probe import Answer
from ray_tune_memguard.cluster.trial_memory import FinishedPeaks, TreePeaks, TrialMemories
from ray_tune_memguard.report.records import RecordFile
from ray_tune_memguard.report.trial_memory import TrialMemory, plain_config, read_trial_memory
from ray_tune_memguard.system import process_tree
from ray_tune_memguard.system.process_tree import ProcessKey, ProcessReading, TreeReading
from tests.unit.worker_processes import MIB, WorkerProcess

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the processes read /proc")


class Probes:
    """Asks this machine. Nodes named ``far`` answer when the test wants it."""

    def __init__(self) -> None:
        self.far: list[tuple[Answer[Any], Callable[[], Any]]] = []

    def ask(self, node: str, function: Callable[..., Any], *args: object) -> Answer[Any]:
        answer: Answer[Any] = Answer(node)
        if node == "far":
            self.far.append((answer, lambda: function(*args)))
        else:
            answer.resolve(function(*args))
        return answer

    def ask_all(self, function: Callable[..., Any]) -> dict[str, Answer[Any]]:
        return {}

    def arrive(self) -> None:
        for answer, call in self.far:
            answer.resolve(call())
        self.far.clear()


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, str]]:
    """By actor id: pid and node."""
    known: dict[str, tuple[int, str]] = {}

    def actor_info(actor_id: str) -> ActorInfo | None:
        if actor_id not in known:
            raise ClusterStateError("planned")
        pid, node = known[actor_id]
        return ActorInfo(actor_id, pid, node, "w", "ALIVE")

    monkeypatch.setattr(gcs, "actor_info", actor_info)
    monkeypatch.setattr(process_tree._Budget, "is_due", lambda self: True)
    return known


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess() as process:
        yield process


@pytest.fixture
def probes() -> Probes:
    return Probes()


@pytest.fixture
def memories(probes: Probes) -> TrialMemories:
    found = TrialMemories()
    found.measure_with(probes)  # type: ignore[arg-type]
    return found


def near(expected: int) -> object:
    return pytest.approx(expected, abs=2 * MIB)


def record(memories: TrialMemories) -> TrialMemory:
    [found] = memories.take_records()
    return found


@on_linux
def test_a_trial_from_start_to_end(
    memories: TrialMemories, worker: WorkerProcess, actors: dict[str, tuple[int, str]]
) -> None:
    actors["a"] = worker.pid, "near"
    assert memories.start("t1", "a", {"x": 1})
    assert memories.of("t1") is None
    memories.look()
    worker.take(50)
    seen = worker.free()
    memories.look()
    [use] = memories.running()
    assert use == memories.of("t1")
    assert memories.running("near") == [use]
    assert memories.running("other") == []
    assert use.peak_rss == near(seen["VmHWM"])
    assert use.rss == near(seen["VmRSS"])
    # And a peak after the last look.
    seen = worker.take(90)
    worker.free()
    memories.end("t1", "completed")
    assert memories.running() == []
    assert memories.of("t1") is None
    found = record(memories)
    assert found.peak_rss_bytes == near(seen["VmHWM"])
    assert found.peak_anonymous_bytes == near(seen["RssAnon"])
    assert found.is_exact
    assert (found.trial_id, found.end, found.pid, found.node) == (
        "t1",
        "completed",
        worker.pid,
        "near",
    )
    assert memories.finished.quantile(0.5, "rss") == found.peak_rss_bytes
    assert memories.heaviest() == [(found.peak_rss_bytes, "t1", {"x": 1})]


@on_linux
def test_a_trial_that_ends_before_the_first_look(
    memories: TrialMemories, worker: WorkerProcess, actors: dict[str, tuple[int, str]]
) -> None:
    actors["a"] = worker.pid, "near"
    memories.start("t1", "a", {})
    seen = worker.take(40)
    memories.end("t1", "completed")
    assert memories.take_records() == []
    memories.look()
    assert record(memories).peak_rss_bytes == near(seen["VmHWM"])


@on_linux
def test_a_reused_actor_does_not_hand_its_peak_on(
    memories: TrialMemories, worker: WorkerProcess, actors: dict[str, tuple[int, str]]
) -> None:
    actors["a"] = worker.pid, "near"
    memories.start("t1", "a", {})
    memories.look()
    high = worker.take(80)["VmHWM"]
    worker.free()
    memories.end("t1", "completed")
    assert not memories.start("t2", "a", {})
    low = worker.take(20)["VmRSS"]
    memories.end("t2", "completed")
    first, second = memories.take_records()
    assert first.peak_rss_bytes == near(high)
    assert second.peak_rss_bytes == near(low)
    assert (first.is_reused, second.is_reused) == (False, True)
    assert second.is_exact


@on_linux
def test_where_the_peak_cannot_be_reset_it_is_sampled(
    memories: TrialMemories,
    worker: WorkerProcess,
    actors: dict[str, tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_tree, "reset_highest_rss", lambda pid: False)
    actors["a"] = worker.pid, "near"
    memories.start("t1", "a", {})
    memories.look()
    worker.take(80)
    worker.free()
    memories.end("t1", "completed")
    memories.start("t2", "a", {})
    low = worker.take(20)["VmRSS"]
    memories.look()
    memories.end("t2", "completed")
    second = memories.take_records()[1]
    assert second.peak_rss_bytes == near(low)
    assert not second.is_exact


@on_linux
def test_a_killed_process_leaves_what_was_seen_last(
    memories: TrialMemories, worker: WorkerProcess, actors: dict[str, tuple[int, str]]
) -> None:
    actors["a"] = worker.pid, "near"
    memories.start("t1", "a", {})
    seen = worker.take(40)
    memories.look()
    worker.kill()
    memories.look()
    assert memories.of("t1") is not None
    memories.end("t1", "error")
    found = record(memories)
    assert found.peak_rss_bytes == near(seen["VmHWM"])
    assert found.end == "error"
    assert not found.is_exact


@on_linux
def test_a_process_that_has_ended_uses_nothing_until_its_trial_starts_again(
    memories: TrialMemories, actors: dict[str, tuple[int, str]]
) -> None:
    with WorkerProcess() as first, WorkerProcess() as second:
        actors.update(a=(first.pid, "near"), b=(second.pid, "near"))
        memories.start("t1", "a", {})
        memories.look()
        first.kill()
        memories.look()
        # Ray calls no hook before it starts the trial again.
        assert memories.running() == []
        assert memories.sizes() == []
        assert memories.of("t1") is not None
        memories.start("t1", "b", {})
        memories.look()
        assert [use.pid for use in memories.running()] == [second.pid]


@on_linux
def test_what_the_process_before_used_is_not_said_of_the_next_one(
    memories: TrialMemories, actors: dict[str, tuple[int, str]]
) -> None:
    with WorkerProcess() as first, WorkerProcess() as second:
        actors.update(a=(first.pid, "near"), b=(second.pid, "near"))
        memories.start("t1", "a", {})
        seen = first.take(40)
        memories.look()
        first.kill()
        memories.start("t1", "b", {})
        # It may die before anybody has looked at it.
        assert memories.of("t1") is None
        memories.look()
        assert memories.of("t1") is not None
        memories.end("t1", "error")
    assert record(memories).peak_rss_bytes == near(seen["VmHWM"])


@on_linux
def test_a_trial_that_starts_twice_before_a_look_leaves_one_record(
    memories: TrialMemories, worker: WorkerProcess, actors: dict[str, tuple[int, str]]
) -> None:
    actors.update(a=(worker.pid, "near"), b=(worker.pid, "near"))
    memories.start("t1", "a", {})
    memories.start("t1", "b", {})
    memories.end("t1", "error")
    memories.look()
    assert record(memories).starts == 2
    assert memories.finished.count == 1


@on_linux
def test_where_the_kernel_keeps_no_peak_it_is_not_exact(
    memories: TrialMemories,
    worker: WorkerProcess,
    actors: dict[str, tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text_of = process_tree._text_of
    monkeypatch.setattr(
        process_tree, "_text_of", lambda pid, name: text_of(pid, name).replace(b"VmHWM", b"None")
    )
    actors["a"] = worker.pid, "near"
    memories.start("t1", "a", {})
    seen = worker.take(30)
    memories.look()
    memories.end("t1", "completed")
    found = record(memories)
    assert found.peak_rss_bytes == near(seen["VmRSS"])
    assert not found.is_exact


@on_linux
def test_a_trial_that_pauses_keeps_its_peak(
    memories: TrialMemories, actors: dict[str, tuple[int, str]]
) -> None:
    with WorkerProcess() as first, WorkerProcess() as second:
        actors.update(a=(first.pid, "near"), b=(second.pid, "near"))
        memories.start("t1", "a", {})
        seen = first.take(60)
        memories.look()
        memories.pause("t1")
        assert memories.running() == []
        memories.start("t1", "b", {})
        memories.look()
        assert [use.pid for use in memories.running()] == [second.pid]
        memories.end("t1", "completed")
        found = record(memories)
    assert found.peak_rss_bytes == near(seen["VmHWM"])
    assert (found.starts, found.is_exact, found.pid) == (2, False, second.pid)


@on_linux
def test_another_trial_in_the_actor_of_a_paused_one(
    memories: TrialMemories, worker: WorkerProcess, actors: dict[str, tuple[int, str]]
) -> None:
    actors["a"] = worker.pid, "near"
    memories.start("t1", "a", {})
    memories.look()
    memories.start("t2", "a", {})
    assert [use.trial_id for use in memories.running()] == ["t2"]


@on_linux
def test_a_far_node_is_not_waited_for(
    memories: TrialMemories,
    probes: Probes,
    worker: WorkerProcess,
    actors: dict[str, tuple[int, str]],
) -> None:
    actors["a"] = worker.pid, "far"
    memories.start("t1", "a", {})
    memories.look()
    memories.look()
    assert len(probes.far) == 1
    probes.arrive()
    memories.look()
    assert memories.of("t1") is not None
    for _ in range(5):
        memories.look()
    assert len(probes.far) == 1
    worker.take(30)
    probes.arrive()
    seen = worker.take(30)
    memories.end("t1", "completed")
    assert memories.take_records() == []
    probes.arrive()
    memories.look()
    found = record(memories)
    assert found.peak_rss_bytes == near(seen["VmHWM"])
    assert found.is_exact


@on_linux
@pytest.mark.parametrize("is_killed", [False, True])
def test_a_far_trial_that_ends_before_its_first_reading_comes_is_read_once_more(
    memories: TrialMemories,
    probes: Probes,
    worker: WorkerProcess,
    actors: dict[str, tuple[int, str]],
    is_killed: bool,
) -> None:
    actors["a"] = worker.pid, "far"
    memories.start("t1", "a", {})
    memories.look()
    first = worker.take(1)
    probes.arrive()
    seen = worker.take(80)
    worker.free()
    memories.end("t1", "completed")
    if is_killed:
        worker.kill()
    probes.arrive()
    memories.look()
    found = record(memories)
    assert found.peak_rss_bytes == near((first if is_killed else seen)["VmHWM"])
    assert found.is_exact is not is_killed


@on_linux
def test_a_node_that_answers_late_takes_its_turns(
    memories: TrialMemories,
    worker: WorkerProcess,
    probes: Probes,
    actors: dict[str, tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns = []

    def read(keys: list[ProcessKey], turn: int) -> list[TreeReading | None]:
        turns.append(turn)
        return [reading(1, pid=keys[0].pid)]

    monkeypatch.setattr(trial_memory, "read_trees", read)
    actors["a"] = worker.pid, "far"
    memories.start("t1", "a", {})
    memories.look()
    probes.arrive()
    for _ in range(3):
        memories.look()
        memories.look()  # The answer has not come yet.
        probes.arrive()
    assert turns == [1, 2, 3]


@on_linux
def test_a_lost_node_leaves_what_was_seen_last(
    memories: TrialMemories,
    probes: Probes,
    worker: WorkerProcess,
    actors: dict[str, tuple[int, str]],
) -> None:
    actors["a"] = worker.pid, "far"
    memories.start("t1", "a", {})
    memories.look()
    seen = worker.take(30)
    probes.arrive()
    memories.look()
    memories.end("t1", "error")
    memories.end_all(timeout_s=0.01)
    found = record(memories)
    assert found.peak_rss_bytes == near(seen["VmHWM"])
    assert not found.is_exact


def test_a_trial_without_a_process_leaves_no_record(
    memories: TrialMemories, actors: dict[str, tuple[int, str]]
) -> None:
    memories.start("t1", "unknown", {})
    memories.look()
    memories.end("t1", "completed")
    memories.start("t2", "unknown", {})
    memories.end_all(timeout_s=0.01)
    assert memories.take_records() == []
    assert memories.finished.count == 0


@on_linux
def test_trials_that_run_when_the_run_ends_are_unfinished(
    memories: TrialMemories, worker: WorkerProcess, actors: dict[str, tuple[int, str]]
) -> None:
    actors["a"] = worker.pid, "near"
    memories.start("t1", "a", {})
    memories.end_all(timeout_s=1)
    assert record(memories).end == "unfinished"


def test_no_actor_of_a_running_trial_is_forgotten(
    memories: TrialMemories,
    probes: Probes,
    actors: dict[str, tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial_memory, "_MAX_ACTORS", 2)
    monkeypatch.setattr(trial_memory, "begin_reading", lambda pid, reset: reading(1, pid=pid))
    monkeypatch.setattr(trial_memory, "read_tree", lambda key: reading(1))
    memories.measure_with(probes)  # type: ignore[arg-type]
    for number in range(3):
        actors[f"a{number}"] = number + 1, "near"
        memories.start(f"t{number}", f"a{number}", {})
    memories.locate()
    memories.end("t0", "completed")
    assert not memories.start("t3", "a0", {})


def test_nothing_is_kept_of_finished_trials(
    memories: TrialMemories, actors: dict[str, tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter(range(1, 10**6))
    monkeypatch.setattr(
        trial_memory, "begin_reading", lambda pid, reset: reading(next(readings), pid=pid)
    )
    monkeypatch.setattr(trial_memory, "read_tree", lambda key: reading(1))
    for number in range(1000):
        actors[f"a{number % 3000}"] = number + 1, "near"
        memories.start(f"t{number}", f"a{number % 3000}", {"x": number})
        memories.look()
        memories.end(f"t{number}", "completed")
        memories.take_records()
    assert memories.finished.count == 1000
    assert len(memories.heaviest()) == trial_memory.MAX_HEAVIEST
    assert memories._tracked == {}
    assert memories._awaited == []


def reading(
    rss: int, highest: int = 0, pid: int = 1, at: float = 0.0, children: tuple[int, ...] = ()
) -> TreeReading:
    """Sizes in MiB; a third of it is shared."""

    def process(pid: int, rss: int, highest: int) -> ProcessReading:
        sizes = rss * MIB, rss * MIB * 2 // 3, max(rss, highest) * MIB
        return ProcessReading(ProcessKey(pid, 0.0), *sizes)

    others = tuple(process(100 + number, size, 0) for number, size in enumerate(children))
    return TreeReading(process(pid, rss, highest), others, at)


def test_a_rise_of_the_highest_rss_counts_on_top_of_the_others() -> None:
    peaks = TreePeaks()
    peaks.begin(reading(90, children=(30,)), is_fresh=True)
    peaks.add(reading(90, highest=150, children=(30,)))
    assert peaks.rss == 180 * MIB
    # It is not counted once more when the child has grown.
    peaks.add(reading(90, highest=150, children=(60,)))
    assert peaks.rss == 180 * MIB
    assert peaks.children == 1


@pytest.mark.parametrize(
    ("looks", "anonymous"),
    [
        # A mapped file is read; then it is gone.
        ([(200, 200, 200), (4000, 2000, 4000), (7900, 3950, 7900), (4000, 4000, 8000)], 4050),
        # A file is mapped now that was not mapped before.
        ([(200, 200, 200), (4000, 200, 4100)], 300),
        # What was freed between two looks.
        ([(200, 150, 200), (200, 150, 900)], 850),
    ],
)
def test_mapped_files_are_no_anonymous_memory(
    looks: list[tuple[int, int, int]], anonymous: int
) -> None:
    def look(rss: int, own: int, highest: int) -> TreeReading:
        sizes = rss * MIB, own * MIB, highest * MIB
        return TreeReading(ProcessReading(ProcessKey(1, 0.0), *sizes), (), 0.0)

    peaks = TreePeaks()
    peaks.begin(look(*looks[0]), is_fresh=True)
    for one in looks[1:]:
        peaks.add(look(*one))
    assert peaks.rss == max(highest for _, _, highest in looks) * MIB
    assert peaks.anonymous == anonymous * MIB


def test_a_look_without_the_highest_rss_forgets_nothing() -> None:
    def without_highest(rss: int) -> TreeReading:
        look = reading(rss)
        return look._replace(root=look.root._replace(highest_rss=0))

    # The highest is that of the trial before, in the same process.
    peaks = TreePeaks()
    peaks.begin(reading(90, highest=500), is_fresh=False)
    peaks.add(without_highest(150))
    peaks.add(reading(60, highest=500))
    assert (peaks.rss, peaks.anonymous) == (150 * MIB, 100 * MIB)
    # What the look without it has seen is no news.
    peaks = TreePeaks()
    peaks.begin(reading(90), is_fresh=True)
    peaks.add(without_highest(150))
    peaks.add(reading(30, highest=150))
    assert (peaks.rss, peaks.anonymous) == (150 * MIB, 100 * MIB)
    peaks.add(reading(30, highest=170))
    assert peaks.rss == 170 * MIB


def test_growth_is_the_slope_of_the_last_looks() -> None:
    peaks = TreePeaks()
    assert math.isnan(peaks.growth())
    for second in range(100):
        size = 300 if second < 60 else 300 + 3 * (second - 60)
        peaks.add(reading(size, at=float(second)))
    assert peaks.growth() == pytest.approx(2 * MIB, rel=0.01)


def test_quantiles_are_of_the_latest_trials_and_the_highest_of_all() -> None:
    peaks = FinishedPeaks()
    assert peaks.quantile(0.5) is None
    peaks.add(10**9, 10**8)
    for size in range(1000):
        peaks.add(2 * size, size)
    assert peaks.quantile(1.0) == 10**8
    assert peaks.quantile(1.0, "rss") == 10**9
    assert peaks.quantile(0.5) == 744 + 128
    assert peaks.quantile(0.0, "rss") == 2 * 744
    assert peaks.count == 1001


def a_record(trial_id: str, peak: int, **other: Any) -> TrialMemory:
    values: dict[str, Any] = {
        "end": "completed",
        "peak_rss_bytes": peak,
        "peak_anonymous_bytes": peak // 2,
        "last_rss_bytes": 1,
        "last_anonymous_bytes": 1,
        "growth_bytes_per_s": math.nan,
        "is_exact": True,
        "children": 0,
        "is_reused": False,
        "starts": 1,
        "node": "n",
        "pid": 7,
        "started": 1.0,
        "ended": 2.0,
    }
    return TrialMemory(trial_id, **{**values, **other})


def test_records_are_read_as_a_table(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / ".memguard" / "trial-memory-2026-11-22_10-00-00.jsonl")
    for number, peak in enumerate((3, 9)):
        config = plain_config({"lr": 0.1, "model": {"layers": (number, 8), "f": print}})
        file.add(a_record(f"t{number}", peak, config=config))
    frame = read_trial_memory(tmp_path)
    assert frame["trial_id"].tolist() == ["t1", "t0"]
    assert frame["peak_rss_bytes"].tolist() == [9, 3]
    assert frame["config/lr"].tolist() == [0.1, 0.1]
    assert frame["config/model/layers"].tolist() == ["(1, 8)", "(0, 8)"]
    assert frame["config/model/f"].tolist() == ["<builtin_function_or_method>"] * 2
    with pytest.raises(FileNotFoundError, match=r"trial-memory-\*\.jsonl"):
        read_trial_memory(tmp_path / "nowhere")


def test_numbers_of_numpy_in_a_configuration_are_numbers() -> None:
    given = {"layers": np.int64(3), "lr": np.float32(0.5), "deep": np.bool_(True), "a": np.ones(2)}
    found = plain_config(given)
    assert found == {"layers": 3, "lr": 0.5, "deep": True, "a": "<ndarray>"}
    assert [type(value) for value in found.values()] == [int, float, bool, str]


def test_long_values_of_a_configuration_are_shortened() -> None:
    prompt = "a long prompt " * 100
    found = plain_config({"prompt": prompt, "numbers": [10**9] * 150, "short": "s"})
    assert found["prompt"] == f"{prompt[:199]}…"
    assert str(found["numbers"]).startswith("[1000000000, ")
    assert str(found["numbers"]).endswith("…")
    assert found["short"] == "s"


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("planned")


class UnprintableText(str):
    def __str__(self) -> str:
        raise RuntimeError("planned")


class UnprintableKey(Unprintable):
    pass


def test_values_of_a_configuration_that_cannot_be_printed() -> None:
    given = {
        "alone": Unprintable(),
        "in_list": [Unprintable()],
        "text": UnprintableText("a"),
        "deep": {UnprintableKey(): 1},
        "loop": [],
        "after": 1,
    }
    given["loop"].append(given["loop"])  # type: ignore[attr-defined]
    assert plain_config(given) == {
        "alone": "<Unprintable>",
        "in_list": "<list>",
        "text": "<UnprintableText>",
        "deep/<UnprintableKey>": 1,
        "loop": "<list>",
        "after": 1,
    }


def test_a_large_configuration_is_bounded() -> None:
    deep: dict[str, Any] = {"x": 1}
    deep["itself"] = deep
    found = plain_config(
        {
            "nested": [[[0] * 10_000] * 100] * 100,
            "texts": ["text" * 10_000],
            "dicts": [{"a": {"b": list(range(20_000))}}],
            "layers": [[64, 64], {"k": (3, 3)}],
            "k" * 1000: 1,
        }
    )
    assert found == {
        "nested": "<list>",
        "texts": "<list>",
        "dicts": "<list>",
        "layers": "[[64, 64], {'k': (3, 3)}]",
        "k" * 199 + "…": 1,
    }
    found = plain_config({"deep": {f"p{n}": n for n in range(10_000)}, "after": 1})
    assert len(found) == 201
    assert (found["deep/p199"], found["…"]) == (199, "…")
    assert "<dict>" in plain_config(deep).values()


def test_a_trial_of_two_runs_is_one_row_with_its_highest_peak(tmp_path: Path) -> None:
    for day, peak, end in ((22, 9, "unfinished"), (23, 4, "completed")):
        file = RecordFile(tmp_path / f"trial-memory-2026-11-{day}_10-00-00.jsonl")
        file.add(a_record("t1", peak, end=end, started=float(day), pid=day))
    [row] = read_trial_memory(tmp_path).itertuples()
    assert (row.peak_rss_bytes, row.end, row.starts) == (9, "completed", 2)
    assert (row.started, row.pid) == (22.0, 23)


class RunController:
    """As much of a controller as a callback needs to begin."""


@pytest.fixture
def reporter(
    tmp_path: Path, memories: TrialMemories, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TrialMemoryReporter]:
    """A reporter in a run without Ray, whose probes ask this machine."""
    controller = RunController()
    run = RunHandle(controller, Capabilities(frozenset({contract.TRIAL_MEMORY})))  # type: ignore[arg-type]
    monkeypatch.setattr(run, "trial_memory", lambda: memories)
    monkeypatch.setattr(run, "node_probes", lambda user: Probes())
    monkeypatch.setattr(run, "actor_id", lambda trial: trial.actor_id)
    monkeypatch.setattr(Probes, "give_back", lambda self, user: None, raising=False)
    found = TrialMemoryReporter(trial_memory_every_seconds=0.02)
    found.begin_run(run)
    yield found
    found.on_experiment_end([])


class RunningTrial:
    def __init__(self, trial_id: str, actor_id: str, experiment: Path) -> None:
        self.trial_id, self.actor_id = trial_id, actor_id
        self.config = {"lr": 0.5}
        self.status = "RUNNING"
        self.local_experiment_path = str(experiment)


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(500):
        if is_so():
            return
        time.sleep(0.02)
    raise AssertionError("not within 10 s")


@on_linux
def test_the_reporter_looks_by_itself_and_writes_a_record(
    reporter: TrialMemoryReporter,
    worker: WorkerProcess,
    actors: dict[str, tuple[int, str]],
    memories: TrialMemories,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    actors["a"] = worker.pid, "near"
    trials: list[Any] = [RunningTrial("t1", "a", tmp_path)]
    reporter.on_trial_start(1, trials, trials[0])
    wait_until(lambda: memories.of("t1") is not None)
    assert "trials " in memories.running_text()
    assert "t1" in memories.running_text()
    seen = worker.take(40)
    reporter.on_trial_complete(1, trials, trials[0])
    wait_until(lambda: bool(list(tmp_path.glob(".memguard/*"))))
    with caplog.at_level(logging.INFO, logger="ray_tune_memguard"):
        reporter.on_experiment_end(trials)
    [row] = read_trial_memory(tmp_path).to_dict("records")
    assert row["peak_rss_bytes"] == near(seen["VmHWM"])
    assert row["config/lr"] == 0.5
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("Memory of 1 trial: ")
    assert line.endswith(" by t1 (lr=0.5).")


@on_linux
def test_a_paused_trial_does_not_run(
    reporter: TrialMemoryReporter,
    worker: WorkerProcess,
    actors: dict[str, tuple[int, str]],
    memories: TrialMemories,
    tmp_path: Path,
) -> None:
    actors["a"] = worker.pid, "near"
    trials: list[Any] = [RunningTrial("t1", "a", tmp_path)]
    reporter.on_trial_start(1, trials, trials[0])
    wait_until(lambda: bool(memories.running()))
    trials[0].status = "PAUSED"
    reporter.on_step_end(2, trials)
    assert memories.running() == []


@on_linux
def test_an_error_of_ours_is_one_warning_and_the_thread_goes_on(
    reporter: TrialMemoryReporter,
    worker: WorkerProcess,
    actors: dict[str, tuple[int, str]],
    memories: TrialMemories,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = []

    def fail(roots: list[ProcessKey]) -> list[TreeReading | None]:
        calls.append(roots)
        raise MemoryError("planned")

    boundary.begin_run()
    monkeypatch.setattr(memories, "look", lambda: fail([]))
    trials: list[Any] = [RunningTrial("t1", "a", tmp_path)]
    with caplog.at_level(logging.WARNING, logger="ray_tune_memguard"):
        reporter.on_trial_start(1, trials, trials[0])
        wait_until(lambda: len(calls) > 3)
    assert ["planned" in record.getMessage() for record in caplog.records] == [True]


def test_without_a_controller_it_does_nothing() -> None:
    found = TrialMemoryReporter()
    found.setup()
    assert not found.active
    found.on_trial_start(1, [], None)  # type: ignore[arg-type]
    found.on_experiment_end([])
