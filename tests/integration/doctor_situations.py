"""Idle workers in five situations, and a cluster on which the doctor's settings were set.

Run in a process of its own by ``test_doctor.py``; prints one JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import ray
from ray._private.state import workers

from ray_tune_memguard.cluster import settings
from tests.integration.own_process import CLUSTER

MIB = 2**20
BAD = {"kill_idle_workers_interval_ms": 0, "idle_worker_killing_time_threshold_ms": 60_000}


@ray.remote(num_cpus=0.25)
def task(kind: str) -> int:
    import threading

    held = globals().setdefault("HELD", [])
    if kind == "owns":
        held.append(ray.put(b"x" * 200_000))
    elif kind == "holds":
        held.append(bytearray(b"1") * (120 * MIB))
    elif kind == "spins":
        threading.Thread(target=spin, daemon=True).start()
    time.sleep(1.0)
    return os.getpid()


def spin() -> None:
    while True:
        pass


def doctor(*arguments: str) -> tuple[int, str]:
    """What the command prints in a process of its own, and its exit code."""
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "ray_tune_memguard", "doctor", "--address", address]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 10, 20), done.stderr
    return done.returncode, done.stdout


def idle() -> int:
    return len(workers())


def main() -> None:
    ray.init(**CLUSTER, _system_config=BAD)
    kinds = ("owns", "holds", "spins", "plain", "plain", "plain")
    pids = dict(zip(kinds, ray.get([task.remote(kind) for kind in kinds]), strict=True))
    workers = idle()
    code, found = doctor("--json")
    _, fix = doctor("--fix", "system-config")
    said = {"pids": pids, "code": code, "doctor": json.loads(found), "workers": workers}
    said["started"] = idle() - workers
    ray.shutdown()

    line = next(line for line in fix.splitlines() if line.startswith("ray start --head"))
    mended = json.loads(line.split("'")[1])
    # Each setting of the table is accepted by this Ray.
    version = settings.version_of(ray.__version__)
    everything = {name: setting.default for name, setting in settings.known_in(version).items()}
    ray.init(**CLUSTER, _system_config={**everything, **mended})
    ray.get([task.remote("plain") for _ in range(8)])
    for _ in range(60):
        if idle() <= 2:
            break
        time.sleep(0.25)
    said["mended"] = mended
    said["idle"] = idle()
    for _ in range(5):
        said["healthy"] = [*doctor("--json")]
        if not json.loads(said["healthy"][1])["findings"]:
            break
        time.sleep(2.0)  # On a busy machine, workers that have just ended or started use CPU time.
    print(json.dumps(said))


if __name__ == "__main__":
    main()
