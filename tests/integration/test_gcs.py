"""What Ray's control service tells about actors, workers and nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import ray

from ray_tune_memguard.cluster import gcs
from ray_tune_memguard.cluster.session import logs_directory, session_directory


@ray.remote(num_cpus=0)
class Sleeper:
    def pid(self) -> int:
        return os.getpid()


def test_an_actor_and_its_worker_alive_and_killed() -> None:
    sleeper = Sleeper.remote()
    pid = ray.get(sleeper.pid.remote())
    actor = gcs.actor_info(sleeper._actor_id.hex())
    assert actor is not None
    assert (actor.pid, actor.state, actor.death_reason) == (pid, "ALIVE", "")
    worker = gcs.worker_info(actor.worker_id)
    assert worker is not None
    assert (worker.pid, worker.is_alive, worker.exit_type) == (pid, True, "")
    [node] = gcs.nodes()
    assert node.is_alive
    assert node.node_id == actor.node_id == worker.node_id
    assert node.resources["CPU"] == 2

    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(sleeper.pid.remote(), timeout=30)
    actor = gcs.actor_info(actor.actor_id)
    assert actor is not None
    assert (actor.state, actor.death_reason) == ("DEAD", "WORKER_DIED")
    worker = gcs.worker_info(actor.worker_id)
    assert worker is not None
    assert (worker.is_alive, worker.exit_type) == (False, "SYSTEM_ERROR")


def test_another_process_shows_its_users_token() -> None:
    address = ray.get_runtime_context().gcs_address
    code = (
        "from ray_tune_memguard.cluster import gcs\n"
        f"with gcs.connected_to({address!r}):\n"
        "    print(len(gcs.nodes()))"
    )
    # Ray sets it in the process that starts a cluster, and so for its children.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
    assert "Token" not in done.stderr


def test_the_rest_of_what_it_tells() -> None:
    assert isinstance(gcs.system_config(), dict)
    assert gcs.worker_info(ray.WorkerID.from_random().hex()) is None
    with pytest.raises(gcs.ClusterStateError, match="does not tell the actor: ValueError"):
        gcs.actor_info("no id")
    session = session_directory()
    assert session is not None
    assert logs_directory() == session / "logs"
    assert (session / "logs").is_dir()
