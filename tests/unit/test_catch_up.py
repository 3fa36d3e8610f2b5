"""A restored searcher goes on where the last finished trial left it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.tune.experiment import Experiment
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm

from ray_tune_memguard.adapter.restore.plan import UnsnapshottedTrial
from ray_tune_memguard.adapter.restore.searcher import catch_up


def late(trial_id: str, creation_index: int, score: float = 0.0) -> UnsnapshottedTrial:
    state = json.dumps({"status": "TERMINATED"})
    return UnsnapshottedTrial(
        trial_id, creation_index, state, json.dumps({"last_result": {"score": score}})
    )


class Controller:
    def __init__(self, search: Any) -> None:
        self._search_alg = search
        self.added: list[str] = []

    def add_trial(self, trial: Any) -> None:
        self.added.append(trial.trial_id)


def variants(tmp_path: Path, **how: Any) -> BasicVariantGenerator:
    search = BasicVariantGenerator(**how)
    search.add_configurations(
        Experiment(
            "sweep",
            lambda config: None,
            config={"number": tune.grid_search(list(range(6)))},
            storage_path=str(tmp_path),
        )
    )
    return search


def rest(search: Any) -> list[str]:
    made = []
    while (trial := search.next_trial()) is not None:
        made.append(trial.trial_id)
    return made


# A trial that completed without being written down is not told of, though its place was free.
@pytest.mark.parametrize("concurrent", [0, 1])
def test_variants_up_to_the_last_finished_one(tmp_path: Path, concurrent: int) -> None:
    search = variants(tmp_path, max_concurrent=concurrent)
    run = search._uuid_prefix
    controller: Any = Controller(search)
    catch_up(controller, [late(f"{run}0000{n}", n) for n in (1, 3)], creation_count=0)
    assert controller.added == [f"{run}00000", f"{run}00002"]
    assert search.max_concurrent == concurrent
    search.max_concurrent = 0
    assert rest(search) == [f"{run}00004", f"{run}00005"]


def test_variants_whose_births_are_not_known(tmp_path: Path) -> None:
    """Of a store that was made anew after damage."""
    search = variants(tmp_path)
    run = search._uuid_prefix
    controller: Any = Controller(search)
    catch_up(controller, [late(f"{run}00002", 0), late(f"{run}00004", 1)], creation_count=0)
    assert rest(search) == [f"{run}00005"]


def test_variants_that_begin_anew(tmp_path: Path) -> None:
    search = variants(tmp_path)
    controller: Any = Controller(search)
    catch_up(controller, [late("other_00001", 1)], creation_count=0)
    assert len(controller.added) + len(rest(search)) == 6


class Unknown(SearchAlgorithm):
    def __init__(self) -> None:
        self.made = 0
        self.told: dict[str, Any] = {}

    def next_trial(self) -> Any:
        self.made += 1
        return SimpleNamespace(trial_id=f"again{self.made - 1}")

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self.told[trial_id] = result


def test_a_searcher_that_is_not_known_loses_no_trial() -> None:
    search = Unknown()
    controller: Any = Controller(search)
    catch_up(controller, [late("x", 3, 0.3), late("y", 5, 0.5)], creation_count=3)
    assert controller.added == ["again1"]
    assert search.told == {"again0": {"score": 0.3}, "again2": {"score": 0.5}}
