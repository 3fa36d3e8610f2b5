"""A sweep that is started over Ray Client runs in the cluster, and is the same there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

REPOSITORY = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """As it is once the cluster runs: Ray notes there how processes of it talk to each other."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


@pytest.fixture
def client_address(tmp_path: Path) -> Iterator[str]:
    """A server for clients, in front of the cluster that all tests share."""
    pytest.importorskip("grpc", reason="grpcio is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cluster = ray.get_runtime_context().gcs_address
    command = ["-m", "ray.util.client.server", "--mode=legacy", f"--address={cluster}"]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, *command, "--host=127.0.0.1", f"--port={port}"],
            cwd=REPOSITORY,
            env=environment(),
            stdout=log,
            stderr=log,
        )
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, (tmp_path / "server.log").read_text()[-4000:]
            time.sleep(0.1)
        yield f"ray://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_ray_client(client_address: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.over_client", client_address, str(tmp_path)],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
