"""What killed a process: recorded texts of three Rays, and the kernel's evidence, by table."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_tune_memguard.cluster.gcs import ActorInfo, NodeInfo, WorkerInfo
from ray_tune_memguard.diagnostics.deaths.monitor_message import read_monitor_message
from ray_tune_memguard.diagnostics.deaths.verdict import DeathFacts, judge
from ray_tune_memguard.system.kernel_log import KernelEvidence, OomKill

RECORDED = Path(__file__).parent / "recorded"
GIB = 2**30
PID = 4711
GONE = (
    "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes "
    "include: (1) the process was killed by the OOM killer due to high memory usage, (2) ray stop "
    "--force was called, or (3) the worker crashed unexpectedly due to SIGSEGV or another error."
)
TERM = (
    "Worker exits unexpectedly. Worker exits with an exit code 1. The process receives a SIGTERM."
)
EXIT = "Worker exits unexpectedly. Worker exits with an exit code 4. "
HANDLING = "During handling of the above exception, another exception occurred:"
STACK = ":actor_name:A\n*** SIGSEGV received at time=1795686394 on cpu 1 ***\nPC: @  0x7f\n"
LOGGED = (
    "[2026-11-27 08:14:36,682 E {pid} {pid}] logging.cc:474: *** SIGSEGV received at "
    "time=1795767276 on cpu 1 ***\nFatal Python error: Segmentation fault\n"
)
CALM = KernelEvidence(counter_rise=0)
NO_LOG = ("kernel log (/dev/kmsg: Operation not permitted)",)


def actor(reason: str) -> ActorInfo:
    return ActorInfo("a", PID, "node", "w", "DEAD", reason)


def worker(detail: str, exit_type: str = "SYSTEM_ERROR") -> WorkerInfo:
    return WorkerInfo("w", PID, "node", False, exit_type, detail)


def gone(kernel: KernelEvidence | None, tail: str | None = "", **more: object) -> DeathFacts:
    """A process that is gone without a word."""
    return DeathFacts(
        "The actor died unexpectedly. Worker exit detail: " + GONE,
        pid=PID,
        actor=actor("WORKER_DIED"),
        worker=worker(GONE),
        kernel=kernel,
        stderr_tail=tail,
        **more,  # type: ignore[arg-type]
    )


def kill(pid: int = PID, rss: int = GIB, **more: object) -> OomKill:
    return OomKill(10.0, pid, "ray::ImplicitFu", rss, **more)  # type: ignore[arg-type]


DEAD_NODE = NodeInfo("node", False, "192.0.2.3", 1, {}, "health check failed")

TABLE: dict[str, tuple[DeathFacts, tuple[str, str, str] | None]] = {
    "exit type of the monitor": (
        DeathFacts("…", actor=actor("WORKER_DIED"), worker=worker("…", "NODE_OUT_OF_MEMORY")),
        ("ray_memory_monitor", "certain", ""),
    ),
    "the monitor, by its text alone": (
        DeathFacts("1 worker(s) were killed due to the node running low on memory."),
        ("ray_memory_monitor", "certain", ""),
    ),
    "the kernel names the process": (
        gone(KernelEvidence((kill(1), kill(cgroup="/job")), counter_rise=2)),
        ("kernel_oom", "certain", "/job"),
    ),
    "the kernel killed another process": (
        gone(KernelEvidence((kill(1),), counter_rise=1)),
        ("sigkill_or_exit", "certain", ""),
    ),
    "a container: the log has another number and the size fits": (
        gone(KernelEvidence((kill(1),), 1, pids_are_ours=False), size_bytes=GIB),
        ("kernel_oom", "likely", ""),
    ),
    "a container: what the kernel killed was smaller": (
        gone(KernelEvidence((kill(1, GIB // 4),), 1, pids_are_ours=False), size_bytes=GIB),
        ("unknown", "unknown", ""),
    ),
    "a container: the kernel killed nothing": (
        gone(KernelEvidence(counter_rise=0, pids_are_ours=False), size_bytes=GIB),
        ("sigkill_or_exit", "certain", ""),
    ),
    "no log, a counter of our cgroups rose": (
        gone(KernelEvidence(counter_rise=1, cgroup_rise=1, absent=NO_LOG)),
        ("kernel_oom", "likely", ""),
    ),
    "no log, the machine's counter rose and it was the largest": (
        gone(KernelEvidence(counter_rise=1, absent=NO_LOG), is_largest=True),
        ("kernel_oom", "likely", ""),
    ),
    "no log, the machine's counter rose and it was not the largest": (
        gone(KernelEvidence(counter_rise=1, cgroup_rise=0, absent=NO_LOG), is_largest=False),
        ("unknown", "unknown", ""),
    ),
    "no log, no counter rose": (
        gone(KernelEvidence(counter_rise=0, absent=NO_LOG)),
        ("sigkill_or_exit", "certain", ""),
    ),
    "no log, no counter": (
        gone(KernelEvidence(absent=(*NO_LOG, "/proc/vmstat"))),
        ("unknown", "unknown", ""),
    ),
    "SIGKILL": (gone(CALM), ("sigkill_or_exit", "certain", "")),
    "SIGKILL, its error stream was not read": (
        gone(CALM, None),
        ("sigkill_or_exit", "likely", ""),
    ),
    "SIGKILL on a node that was not asked": (gone(None, None), ("unknown", "unknown", "")),
    "SIGSEGV": (gone(CALM, STACK), ("crash", "certain", "SIGSEGV")),
    "SIGSEGV, with the line that names the process": (
        gone(CALM, STACK + LOGGED.format(pid=PID)),
        ("crash", "certain", "SIGSEGV"),
    ),
    "SIGKILL, after a child of the trial has crashed": (
        gone(CALM, STACK + LOGGED.format(pid=PID + 1)),
        ("sigkill_or_exit", "certain", ""),
    ),
    "SIGABRT": (
        gone(CALM, "Fatal Python error: Aborted\n\nStack"),
        ("crash", "certain", "SIGABRT"),
    ),
    "SIGTERM": (
        DeathFacts("…", actor=actor("WORKER_DIED"), worker=worker(TERM), kernel=CALM),
        ("sigterm", "certain", ""),
    ),
    "sys.exit": (
        DeathFacts("…", actor=actor("WORKER_DIED"), worker=worker(EXIT), kernel=CALM),
        ("exit_code", "certain", "4"),
    ),
    "sys.exit, the control service cannot be asked": (
        DeathFacts(f"The actor died. Worker exit detail: {EXIT}"),
        ("exit_code", "certain", "4"),
    ),
    "its actor died with the node": (
        DeathFacts("…", actor=actor("NODE_DIED"), worker=None),
        ("node_died", "certain", ""),
    ),
    "its node is dead": (gone(None, None, node=DEAD_NODE), ("node_died", "certain", "")),
    "ray.kill": (
        DeathFacts("…", actor=actor("RAY_KILL"), worker=worker("the actor is killed")),
        ("ray_kill", "certain", ""),
    ),
    "nothing is known": (DeathFacts("The actor died."), ("unknown", "unknown", "")),
    "MemoryError": (
        DeathFacts("Traceback…", is_alive=True, is_memory_error=True),
        ("memory_error", "certain", ""),
    ),
    "numpy's MemoryError": (
        DeathFacts(
            "Traceback…\nnumpy._core._exceptions._ArrayMemoryError: Unable to allocate 8 TiB",
            is_alive=True,
        ),
        ("memory_error", "certain", ""),
    ),
    "CUDA": (
        DeathFacts(
            "Traceback…\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
            is_alive=True,
        ),
        ("cuda_out_of_memory", "certain", ""),
    ),
    "an error while a MemoryError was handled": (
        DeathFacts(f"Traceback…\nMemoryError\n\n{HANDLING}\nKeyError: 3", is_alive=True),
        ("memory_error", "likely", ""),
    ),
    "a MemoryError while another error was handled": (
        DeathFacts(f"Traceback…\nKeyError: 3\n\n{HANDLING}\nMemoryError", is_alive=True),
        ("memory_error", "certain", ""),
    ),
    "an error while CUDA's was handled": (
        DeathFacts(
            f"Traceback…\ntorch.OutOfMemoryError: CUDA out of memory.\n\n{HANDLING}\nKeyError: 3",
            is_alive=True,
        ),
        ("cuda_out_of_memory", "likely", ""),
    ),
    "an ordinary error": (DeathFacts("Traceback…\nValueError: 3", is_alive=True), None),
}


@pytest.mark.parametrize("case", TABLE)
def test_the_verdict(case: str) -> None:
    facts, expected = TABLE[case]
    verdict = judge(facts)
    if expected is None:
        assert verdict is None
        return
    assert verdict is not None
    assert (verdict.cause, verdict.certainty, verdict.detail) == expected
    assert verdict.evidence
    assert "{" not in verdict.phrase()


def test_a_crash_is_placed() -> None:
    stack = "Fatal Python error: Segmentation fault\n\nStack (most recent call first):\n"
    verdict = judge(gone(CALM, f'{stack}  File "train.py", line 16 in step\n  File "ray.py"\n'))
    assert verdict is not None
    assert verdict.evidence == (
        "its error stream ends with the stack of the crash "
        '(innermost: File "train.py", line 16 in step)',
    )


def test_a_plain_sigkill_is_never_out_of_memory() -> None:
    for facts, _ in TABLE.values():
        verdict = judge(facts)
        kernel = facts.kernel
        if kernel is not None and not kernel.kills and not kernel.counter_rise:
            assert verdict is not None
            assert verdict.cause != "kernel_oom"


SIZES = {
    "2.60.0": (24110, 0.69, 4547833856 / GIB, 4540820480, "ray::A.hog"),
    "2.55.1": (27075, 0.74, 3.87, int(0.1638 * 23.59 * GIB), "ray::A.hog"),
    "2.50.1": (28777, 0.77, 2.97, int(0.1231 * 23.59 * GIB), "ray::A.hog"),
}


@pytest.mark.parametrize("version", SIZES)
def test_the_monitors_text(version: str) -> None:
    text = (RECORDED / f"monitor-{version}.txt").read_text()
    pid, size, used, threshold, command = SIZES[version]
    report = read_monitor_message(text)
    assert report is not None
    [killed] = report.workers
    assert (killed.pid, killed.bytes / GIB) == (pid, pytest.approx(size, abs=0.001))
    assert report.used_bytes / GIB == pytest.approx(used, abs=0.04)
    assert report.total_bytes / GIB == pytest.approx(23.59, abs=0.01)
    assert report.threshold_bytes == pytest.approx(threshold, rel=0.001)
    assert len(report.largest) == 10
    assert (report.largest[0].pid, report.largest[0].name) == (pid, command)
    sizes = [user.bytes for user in report.largest]
    assert sizes == sorted(sizes, reverse=True)
    verdict = judge(DeathFacts(text, pid=pid))
    assert verdict is not None
    assert verdict.monitor == report


def test_the_size_of_an_actor_that_is_killed_in_its_constructor() -> None:
    # Ray calls it a task then.
    report = read_monitor_message((RECORDED / "monitor-constructor-2.60.0.txt").read_text())
    assert report is not None
    [worker] = report.workers
    assert (worker.pid, worker.name) == (16380, "ImplicitFunc.__init__")
    assert worker.bytes / GIB == pytest.approx(0.04)


HUNGRY = (
    "{kind}: job ID=01000000, lease ID=06, task name=Hungry(a, b).__init__, required "
    "resources={{CPU: 1}}, pid={pid}, actual memory used={size}GB, worker ID=3e3d8f80)"
)
REASON = "Memory usage 118691465461B exceeded threshold of 116858200195B (87.5% of 133519895756B"
# By the versions of Ray that write so: the figures, what separates the lines, and the reason.
LATER = {
    "2.56": ("was 110.54GB / 124.35GB (0.889)", "; ", f"{REASON} total)", 116858200195),
    "2.57, 2.58": ("was 110.54GB / 124.35GB (0.889)", "\n", f"{REASON} total)", 116858200195),
    "2.59": ("was 110.54GB used / 124.35GB limit (0.889)", "\n", f"{REASON} limit)", 116858200195),
    "a cgroup's limit": (
        "was 110.54GB used / 124.35GB limit (0.889)",
        "\n",
        "user cgroup memory upper bound was met or exceeded",
        None,
    ),
}


@pytest.mark.parametrize("since", LATER)
def test_the_monitors_text_of_versions_between(since: str) -> None:
    figures, separator, reason, threshold = LATER[since]
    text = separator.join(
        (
            "1 worker(s) were killed due to the node running low on memory. Memory on the node "
            f"(IP: 192.0.2.2, ID: 92ed) {figures}",
            f"OOM kill reason: {reason}",
            "Ray killed 1 worker(s) based on the killing policy",
            "Considered workers: [",
            "Selected to kill: " + HUNGRY.format(kind="(Task", pid=52, size="0.67"),
            HUNGRY.format(kind="(Actor(ef5c390f)", pid=51, size="21.95"),
            "(Worker with no lease granted: pid=53, actual memory used=0.05GB, worker ID=4e)",
            "]",
            "Total non-selected idle workers: 25",
            "Top 10 memory users: PID\tMEM(GB)\tCOMMAND",
            "51\t21.95\tray::Hungry",
            "52\t0.67\tray::Hungry",
            "Refer to the documentation",
        )
    )
    report = read_monitor_message(text)
    assert report is not None
    assert report.used_bytes / GIB == pytest.approx(110.54)
    assert report.total_bytes / GIB == pytest.approx(124.35)
    assert report.threshold_bytes == threshold
    assert [worker.pid for worker in report.workers] == [52, 51, 53]
    assert [worker.name for worker in report.workers][:2] == ["Hungry(a, b).__init__"] * 2
    assert [(user.pid, user.name) for user in report.largest] == [
        (51, "ray::Hungry"),
        (52, "ray::Hungry"),
    ]


def test_an_unknown_text_loses_the_figures_only() -> None:
    verdict = judge(DeathFacts("It was killed due to the node running low on memory. 3 of 4 used."))
    assert verdict is not None
    assert (verdict.cause, verdict.monitor) == ("ray_memory_monitor", None)
