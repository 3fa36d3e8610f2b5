"""Sweeps with trials that die in given ways, in a process of their own.

``python -m tests.integration.deaths FOLDER CAUSE,CAUSE… [REPEATS]``. Prints a JSON list with an
object for each sweep: what ``read_deaths`` and the results say. The causes are those of
:data:`CAUSES`; ``monitor`` and ``node`` each need a process for themselves.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tests.integration.short_of_memory import MAX_STEPS, STEP, is_more_wanted, set_up_monitor
from tests.integration.small_cluster import start_ray

MIB = 2**20
CGROUP = Path("/sys/fs/cgroup/memory")
CGROUP_LIMIT = 400 * MIB
# The cluster itself takes half a gigabyte of this.
HEADROOM = 2500 * MIB
#: A trial that holds this much is the culprit. Others on a busy machine may take the memory first.
MIN_HELD = 700 * MIB
#: By name: the cause that is right.
CAUSES = {
    "monitor": "ray_memory_monitor",
    "kernel": "kernel_oom",
    "sigkill": "sigkill_or_exit",
    "os_exit": "sigkill_or_exit",
    "segv": "crash",
    "abort": "crash",
    "sigterm": "sigterm",
    "sys_exit": "exit_code",
    "memory_error": "memory_error",
    "cuda": "cuda_out_of_memory",
    "node": "node_died",
    "ordinary": None,
}
#: How many results a trial makes that nothing kills. The innocent one is stopped with the sweep.
STEPS = {"monitor": MAX_STEPS, "innocent": MAX_STEPS, "kernel": 40}
DETAILS = {"segv": "SIGSEGV", "abort": "SIGABRT", "sys_exit": "4"}


class OutOfGpu(RuntimeError):
    """As torch raises it, where it is not installed."""


def exhaust_gpu() -> None:
    raise OutOfGpu("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 8 GiB")


def raise_ordinary() -> None:
    raise ValueError("ordinary")


def exhaust_address_space() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))
    bytearray(2**40)


WAYS: dict[str, Callable[[], object]] = {
    "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "sigterm": lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(20)),
    "os_exit": lambda: os._exit(3),
    "segv": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "memory_error": exhaust_address_space,
    "cuda": exhaust_gpu,
    "ordinary": raise_ordinary,
}


def dies(config: dict[str, Any]) -> None:
    """The trial dies after its second result, by its cause; ``None`` lives."""
    from ray import tune

    held = []
    cause = config["cause"]
    takes = {"monitor": STEP, "kernel": 60 * MIB}.get(cause, 0)
    for step in range(STEPS.get(cause, 12)):
        tune.report({"step": step, "held": sum(map(len, held))})
        time.sleep(0.1)
        if takes:
            if cause == "monitor" and not is_more_wanted():
                continue
            held.append(bytearray(os.urandom(1)) * takes)
        elif not held:
            held.append(bytearray(os.urandom(1)) * (40 * MIB))
        if step == 1 and cause in WAYS:
            WAYS[cause]()


def make_class() -> Any:
    from ray import tune

    class Exits(tune.Trainable):
        """A class, because a function runs in a thread, which sys.exit ends alone."""

        def step(self) -> dict[str, Any]:
            if self.iteration == 1:
                sys.exit(4)
            return {}

    return Exits


def make_callback(act: Callable[[dict[str, Any]], object]) -> Any:
    from ray import tune

    class Provoke(tune.Callback):
        """What the driver does after the first result of the trials that it acts on."""

        act: Callable[[dict[str, Any]], object]

        def __getstate__(self) -> dict[str, Any]:
            return {}  # A cluster does not pickle.

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            if result.get("step") == 0 and trial.config["cause"] in ("kernel", "node"):
                self.act(result)

    provoke = Provoke()
    provoke.act = act
    return provoke


@contextmanager
def limited_group() -> Iterator[Path]:
    """A cgroup of its own with a limit; needs root, and cgroups of version 1."""
    group = CGROUP / f"memguard_{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(CGROUP_LIMIT))
    try:
        yield group
    finally:
        for _ in range(50):
            try:
                group.rmdir()
                break
            except OSError:  # Its process has not ended yet.
                time.sleep(0.1)


def can_limit() -> bool:
    return os.geteuid() == 0 and (CGROUP / "memory.limit_in_bytes").is_file()


def sweep(
    folder: Path, trainable: Any, causes: list[str | None], callback: Any, **run_options: Any
) -> dict[str, Any]:
    """One sweep; what its deaths and results say, by the causes of its trials."""
    from ray import tune

    from ray_tune_memguard import MemGuard, TrialDeathReporter, read_deaths

    cause_of: dict[str, str | None] = {}
    over: list[str | None] = []
    held = {"now": 0, "least": 2**63}

    class Remember(tune.Callback):
        def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
            cause_of.update((trial.trial_id, trial.config["cause"]) for trial in trials)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            over.append(trial.config["cause"])
            held["least"] = min(held["least"], held["now"])

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            if trial.config["cause"] == "monitor":
                held["now"] = result["held"]

    took: list[float] = []
    find_out = TrialDeathReporter.before_failure

    def timed(reporter: TrialDeathReporter, *args: Any) -> str | None:
        started = time.perf_counter()
        try:
            return find_out(reporter, *args)
        finally:
            took.append((time.perf_counter() - started) * 1000)

    TrialDeathReporter.before_failure = timed  # type: ignore[method-assign]
    began = time.monotonic()
    grid = tune.Tuner(
        trainable,
        param_space={"cause": tune.grid_search(causes)},
        run_config=tune.RunConfig(
            storage_path=str(folder),
            verbose=0,
            # The innocent trial goes on for as long as the other one.
            stop=lambda trial_id, result: "monitor" in over,
            callbacks=[MemGuard(), Remember(), callback],
            failure_config=tune.FailureConfig(**run_options),
        ),
    ).fit()
    TrialDeathReporter.before_failure = find_out  # type: ignore[method-assign]
    return {
        "milliseconds": took,
        "trials": list(cause_of.values()),
        # Whether the trial that takes too much was the largest process whenever one was killed.
        "has_culprit": held["least"] >= MIN_HELD,
        "deaths": [
            dataclasses.asdict(death)
            | {
                "is_culprit": death.is_culprit,
                "provoked": cause_of[death.trial_id],
                "culprit_provoked": death.culprit and cause_of.get(death.culprit.trial_id),
            }
            for death in read_deaths(grid.experiment_path)
        ],
        "errors": [str(result.error) for result in grid if result.error],
        "path": grid.experiment_path,
        "seconds": time.monotonic() - began,
    }


def on_two_nodes(folder: Path) -> dict[str, Any]:
    """One of two nodes dies with its trial."""
    # Ray counts a node as dead after a few missed checks.
    os.environ.update(RAY_health_check_failure_threshold="2", RAY_health_check_period_ms="500")
    import ray
    from ray import tune
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    # While there is no other one, the driver cannot but connect to the head.
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    node = cluster.add_node(num_cpus=1, resources={"doomed": 1})
    trainable = tune.with_resources(
        dies,
        lambda config: tune.PlacementGroupFactory(
            [{"CPU": 1, **({"doomed": 1} if config["cause"] == "node" else {})}]
        ),
    )
    callback = make_callback(lambda result: cluster.remove_node(node, allow_graceful=False))
    said = sweep(folder, trainable, ["node", None], callback)
    ray.shutdown()
    cluster.shutdown()
    return said


def on_one_node(folder: Path, causes: list[str], repeats: int) -> list[dict[str, Any]]:
    """Sweeps on one node."""
    if "monitor" in causes:
        set_up_monitor(HEADROOM)
    import ray

    start_ray(2, object_store_memory=100 * MIB)
    said = []
    functions = [cause for cause in causes if cause != "sys_exit"]
    with limited_group() if "kernel" in causes else nullcontext(Path()) as group:
        callback = make_callback(
            lambda result: (group / "cgroup.procs").write_text(str(result["pid"]))
        )
        if "monitor" in causes:
            # The hog and an innocent trial, in turn the older one.
            for number in range(repeats):
                both = ["monitor", "innocent"]
                said.append(sweep(folder, dies, both if number % 2 else both[::-1], callback))
        else:
            said.append(sweep(folder, dies, [*functions, None], callback))
        if "sys_exit" in causes:
            said.append(sweep(folder, make_class(), ["sys_exit"], callback))
    ray.shutdown()
    return said


def as_driver(folder: Path, is_restored: bool) -> list[dict[str, Any]]:
    """A run whose driver the kernel kills, or the run that is restored from it."""
    import ray
    from ray import tune

    from ray_tune_memguard import MemGuard

    class Grow(tune.Callback):
        """Takes more than the group of the driver's process allows."""

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            # In the restored run there is no group.
            if result["step"] == 3 and group.is_dir():
                (group / "cgroup.procs").write_text(str(os.getpid()))
                self.held = [bytearray(b"1") * (60 * MIB) for _ in range(20)]

    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
    if is_restored:
        tune.Tuner.restore(str(folder / "sweep"), dies).fit()
        return []
    with limited_group() as group:
        tune.Tuner(
            dies,
            param_space={"cause": None},
            run_config=tune.RunConfig(
                name="sweep", storage_path=str(folder), callbacks=[MemGuard(), Grow()]
            ),
        ).fit()
    return []


if __name__ == "__main__":
    given = sys.argv[2].split(",")
    path, number = Path(sys.argv[1]), int(sys.argv[3]) if len(sys.argv) > 3 else 1
    if given in (["driver"], ["restored"]):
        said = as_driver(path, given == ["restored"])
    elif given == ["node"]:
        said = [on_two_nodes(path)]
    else:
        said = on_one_node(path, given, number)
    print(json.dumps(said))
