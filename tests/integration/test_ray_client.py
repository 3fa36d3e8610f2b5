"""A sweep that is started over Ray Client runs in the cluster, and is the same there."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.integration.own_process import ROOT, run


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
            cwd=ROOT,
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


@pytest.mark.slow
def test_ray_client(client_address: str, tmp_path: Path) -> None:
    done = run(["tests.integration.over_client", client_address, str(tmp_path)])
    assert done.returncode == 0, done.stderr[-4000:]
