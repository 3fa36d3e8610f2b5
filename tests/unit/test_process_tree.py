"""The memory of processes as they see it themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import psutil
import pytest

from ray_tune_memguard.system import process_tree
from ray_tune_memguard.system.process_tree import (
    ProcessKey,
    TreeReading,
    begin_reading,
    process_key,
    read_tree,
    read_trees,
)
from tests.unit.worker_processes import MIB, WorkerProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the processes read /proc")


@pytest.fixture(autouse=True)
def _search_at_every_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_tree._Budget, "is_due", lambda self: True)


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess() as process:
        yield process


def key_of(worker: WorkerProcess) -> ProcessKey:
    key = process_key(worker.pid)
    assert key is not None
    return key


def look(worker: WorkerProcess) -> TreeReading:
    [reading] = read_trees([key_of(worker)])
    assert reading is not None
    return reading


def near(expected: int) -> object:
    return pytest.approx(expected, abs=2 * MIB)


def test_a_process_is_read_as_it_sees_itself(worker: WorkerProcess) -> None:
    seen = worker.take(60)
    reading = look(worker)
    assert reading.rss == near(seen["VmRSS"])
    assert reading.anonymous == near(seen["RssAnon"])
    assert reading.root.highest_rss == near(seen["VmHWM"])
    assert reading.children == ()


def test_a_peak_between_two_looks_is_in_the_highest_rss(worker: WorkerProcess) -> None:
    before = look(worker)
    worker.take(60)
    worker.free()
    after = look(worker)
    assert after.rss == near(before.rss)
    assert after.root.highest_rss == near(before.rss + 60 * MIB)


def test_the_highest_rss_can_count_from_now_on(worker: WorkerProcess) -> None:
    worker.take(60)
    worker.free()
    reading = begin_reading(worker.pid, reset=True)
    assert reading is not None
    assert reading.root.highest_rss == near(reading.rss)


def test_forked_children_count_and_what_they_share_counts_once(
    worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = worker.take(80)
    child = worker.fork(40)
    reading = look(worker)
    assert len(reading.children) == 1
    assert reading.rss == near(alone["VmRSS"] + child["VmRSS"])
    assert reading.anonymous == near(alone["RssAnon"] + 40 * MIB)
    monkeypatch.setattr(process_tree._common, "update", lambda roots: None)
    worker.join()
    assert look(worker).children == ()
    assert look(worker).anonymous == near(alone["RssAnon"])


def test_a_process_that_has_ended_is_none(worker: WorkerProcess) -> None:
    key = key_of(worker)
    worker.kill()
    assert read_trees([key]) == [None]
    assert read_tree(key) is None
    assert begin_reading(key.pid, reset=False) is None


def test_a_pid_that_is_used_again_is_none(worker: WorkerProcess) -> None:
    earlier = key_of(worker)._replace(started=1.0)
    assert read_tree(earlier) is None
    assert read_trees([earlier]) == [None]


def test_of_many_trees_the_highest_rss_is_read_in_turn(
    worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_tree, "MAX_HIGHEST", 1)
    with WorkerProcess() as other, WorkerProcess() as third:
        roots = [key_of(one) for one in (worker, other, third)]
        seen = [read_trees(roots, turn) for turn in range(3)]
    for readings in zip(*seen, strict=True):
        processes = [reading.root for reading in readings if reading is not None]
        assert len(processes) == 3
        assert sum(process.highest_rss > 0 for process in processes) == 1
        assert all(process.rss == near(processes[0].rss) for process in processes)
        assert all(process.anonymous == near(processes[0].anonymous) for process in processes)


def test_without_proc_psutil_reads(worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_tree, "_HAS_PROC", False)
    seen = worker.take(60)
    child = worker.fork(20)
    reading = look(worker)
    assert reading.rss == near(seen["VmRSS"] + child["VmRSS"])
    assert len(reading.children) == 1
    key = key_of(worker)
    worker.kill()
    assert read_tree(key) is None


def test_a_search_is_paid_by_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    now, cpu = [100.0], [0.0]
    monkeypatch.setattr(process_tree.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(process_tree.time, "thread_time", lambda: cpu[0])
    budget = process_tree._Budget(0.001)
    assert budget.is_due()
    cpu[0] = 0.002
    budget.spend(0.0)
    now[0] = 101.9
    assert not budget.is_due()
    now[0] = 102.1
    assert budget.is_due()


def test_there_is_no_search_while_no_process_starts(
    worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_pid = [1]
    monkeypatch.setattr(process_tree, "_last_pid", lambda: last_pid[0])
    descendants = process_tree._Descendants()
    root = key_of(worker)
    descendants.update([root])
    worker.fork(1)
    descendants.update([root])
    assert descendants.of(root.pid) == []
    last_pid[0] = 2
    descendants.update([root])
    assert len(descendants.of(root.pid)) == 1


def test_two_runs_of_a_process_do_not_hide_each_others_children(worker: WorkerProcess) -> None:
    descendants = process_tree._Descendants()
    root = key_of(worker)
    worker.fork(1)
    descendants.update([root])
    with WorkerProcess() as other:
        descendants.update([key_of(other)])
        assert len(descendants.of(root.pid)) == 1


def test_what_a_child_takes_after_the_last_reading_of_shared_pages_counts(
    worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = worker.take(80)
    worker.fork(0)
    look(worker)
    monkeypatch.setattr(process_tree._common, "update", lambda roots: None)
    worker.take(40)
    assert look(worker).anonymous == near(alone["RssAnon"] + 40 * MIB)


@pytest.mark.parametrize("is_told", [True, False], ids=["last pid", "no last pid"])
def test_a_descendant_whose_pid_is_used_again_is_read_again(
    worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    descendants = process_tree._Descendants()
    root = key_of(worker)
    worker.fork(1)
    descendants.update([root])
    [child] = descendants.of(root.pid)
    descendants._table[child.pid] = (root.pid, child.started - 1)
    descendants._last_pid = child.pid - 1
    monkeypatch.setattr(process_tree, "_last_pid", lambda: child.pid if is_told else 0)
    descendants.update([root])
    assert descendants.of(root.pid) == [child]


def test_a_root_whose_pid_is_used_again_has_ended(
    worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    descendants = process_tree._Descendants()
    root = key_of(worker)
    descendants.update([root])
    assert not descendants.are_without(root)
    earlier = root._replace(started=root.started - 1)
    descendants.update([earlier])
    assert descendants.are_without(earlier)
    assert not descendants.are_without(root)


@pytest.mark.parametrize(
    ("earlier", "later", "new"),
    [(10, 12, {11, 12}), (10, 10, set()), (14, 2, {1, 2, 15}), (0, 3, set(range(1, 16)))],
)
def test_a_new_process_has_a_pid_that_was_given_since(
    earlier: int, later: int, new: set[int]
) -> None:
    assert {pid for pid in range(1, 16) if process_tree._is_between(pid, earlier, later)} == new


def test_reading_all_processes_once_does_not_put_off_the_next_search(
    worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    descendants = process_tree._Descendants()

    def take_long(earlier: int, last_pid: int) -> None:
        until = process_tree.time.thread_time() + 0.05
        while process_tree.time.thread_time() < until:
            pass

    monkeypatch.setattr(descendants, "_read_new_processes", take_long)
    descendants.update([key_of(worker)])
    pause = descendants._budget._due_at - process_tree.time.monotonic()
    assert pause < 0.05 / process_tree.MAX_SEARCH_SHARE / 2


def parent_of(pid: int) -> int:
    found = process_tree._parent_and_start(pid)
    return 0 if found is None else found[0]


def test_what_is_known_of_processes_is_read_again_after_a_break(
    worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    descendants = process_tree._Descendants()
    root = key_of(worker)
    descendants.update([root])
    # Meanwhile pids have been all round: the last one says nothing.
    monkeypatch.setattr(process_tree, "_last_pid", lambda: 2)
    descendants._last_pid = 1
    worker.fork(1)
    [child] = [pid for pid in psutil.pids() if parent_of(pid) == root.pid]
    descendants._table[child] = (1, 0.0)
    descendants._table[root.pid] = (1, root.started - 1)
    descendants._searched.clear()
    descendants.update([root])
    # A process that is asked for is read when the table says otherwise.
    assert not descendants.are_without(root)
    assert descendants.of(root.pid) == []
    descendants._read_at -= process_tree._MAX_AGE_S + 1
    descendants._searched.clear()
    descendants.update([root])
    assert [key.pid for key in descendants.of(root.pid)] == [child]


def test_an_orphan_is_no_child_of_whoever_has_its_parents_pid_now() -> None:
    root, orphan = ProcessKey(1, 0.0), ProcessKey(7, 5.0)
    again = ProcessKey(5, 9.0)
    children = {1: [again], 5: [orphan], 7: [again]}
    assert process_tree._below(root, children) == [again]
    # A ring of them ends, too.
    assert process_tree._below(orphan, children) == [again]


def test_a_reader_sees_no_search_that_is_under_way(
    worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    descendants = process_tree._Descendants()
    root = key_of(worker)
    worker.fork(1)
    descendants.update([root])
    seen = []
    read = process_tree._parent_and_start

    def read_meanwhile(pid: int) -> tuple[int, float] | None:
        seen.append(len(descendants.of(root.pid)))
        return read(pid)

    monkeypatch.setattr(process_tree, "_parent_and_start", read_meanwhile)
    descendants._last_pid = 0
    descendants.update([root])
    assert set(seen) == {1}
