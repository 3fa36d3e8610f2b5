"""What is said when a cluster cannot be asked."""

from __future__ import annotations

import socket

import pytest
from ray.exceptions import RaySystemError

from ray_tune_memguard.cluster import gcs


def test_a_token_that_cannot_be_read_is_an_answer_of_the_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise RaySystemError("no such file: /nowhere/token")

    monkeypatch.setattr(gcs, "_use_token", refuse)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            pytest.raises(gcs.ClusterStateError, match="/nowhere/token"),
            gcs.connected_to(address),
        ):
            pass
