"""One small Ray cluster for all integration tests, and sweeps that run twice on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
# Trial ids are random otherwise, and could not be compared.
os.environ["_TEST_TUNE_TRIAL_UUID"] = "same"
# For workers, whoever their driver is: what a client sends names modules of the tests.
os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])

import pytest
import ray

from tests.integration.small_cluster import start_ray
from tests.integration.warm_workers import warm_workers

# So that what it asserts is explained as in a test file.
pytest.register_assert_rewrite("tests.integration.equality")


@pytest.fixture(scope="session", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with warm_workers(tmp_path_factory.mktemp("workers")):
        start_ray(2)
    yield
    ray.shutdown()


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TUNE_MEMGUARD_") or name == "RAY_TUNE_CALLBACKS":
            monkeypatch.delenv(name)


@pytest.fixture
def spilled_in_their_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials that finish in quick succession do not wait for each other.

    So that it is known what a copy of the files, taken in place of a kill, has.
    """
    monkeypatch.setattr("ray_tune_memguard.callbacks.trial_pruner.SPILL_EVERY_S", 0.0)
