"""What is said when a cluster cannot be asked."""

from __future__ import annotations

import pytest
from ray.exceptions import RaySystemError

from ray_tune_memguard.cluster import gcs


def test_a_token_that_cannot_be_read_is_an_answer_of_the_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise RaySystemError("no such file: /nowhere/token")

    monkeypatch.setattr(gcs, "_use_token", refuse)
    monkeypatch.setattr(gcs, "why_no_cluster", lambda address: None)
    with (
        pytest.raises(gcs.ClusterStateError, match="/nowhere/token"),
        gcs.connected_to("127.0.0.1:6379"),
    ):
        pass


def test_an_address_that_no_cluster_can_have_is_an_error_of_the_usual_kind() -> None:
    with (
        pytest.raises(gcs.ClusterStateError, match=r"No Ray cluster answers at 10\.0\.0\.\.5"),
        gcs.connected_to("10.0.0..5:6379"),
    ):
        pass
