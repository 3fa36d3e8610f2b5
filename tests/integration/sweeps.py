"""Trainables, and the same sweep by Ray alone and with MemGuard."""

from __future__ import annotations

import json
import math
import os
import random
import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray.tune.utils
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import SearchGenerator
from ray.tune.search.basic_variant import BasicVariantGenerator

SEED = 7
_create_trial_if_possible = SearchGenerator.create_trial_if_possible
_generate_id = vars(Trial)["generate_id"]
SPACE = {
    "a": tune.uniform(0.0, 1.0),
    "b": tune.loguniform(1e-4, 1.0),
    "layers": tune.choice([(8, 8), (16,)]),
    "nested": {"c": tune.randint(0, 10)},
}
# Trials with an odd `c` fail, and each failure costs a new actor: here one in eight does.
RARELY_FAILS = {**SPACE, "nested": {"c": tune.choice([0, 2, 4, 6, 8, 0, 2, 1])}}
# What differs from run to run whoever runs it.
VOLATILE = (
    "timestamp",
    "date",
    "pid",
    "hostname",
    "node_ip",
    "time_this_iter_s",
    "time_total_s",
    "time_since_restore",
    "checkpoint_dir_name",
    "logdir",
)


def score(config: dict[str, Any], step: int = 0) -> dict[str, Any]:
    return {
        "score": config["a"] * 10 + config["nested"]["c"] - step,
        "info": {"loss": config["b"] / (step + 1), "nan": math.nan},
        "text": f"step {step}",
    }


def one_report(config: dict[str, Any]) -> None:
    tune.report(score(config))


def three_reports(config: dict[str, Any]) -> None:
    for step in range(3):
        tune.report(score(config, step))


def fails_sometimes(config: dict[str, Any]) -> None:
    tune.report(score(config))
    if config["nested"]["c"] % 2:
        raise RuntimeError(f"planned failure at {config['nested']['c']}")


def saves_then_fails_sometimes(config: dict[str, Any]) -> None:
    with_checkpoints(config)
    if config["nested"]["c"] % 2:
        raise RuntimeError(f"planned failure at {config['nested']['c']}")


def fails_first_time(config: dict[str, Any]) -> None:
    """Fails until its checkpoint is there: the retry succeeds."""
    checkpoint = tune.get_checkpoint()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "mark").write_text("x")
        tune.report(score(config), checkpoint=tune.Checkpoint.from_directory(folder))
    if checkpoint is None and config["nested"]["c"] % 2:
        raise RuntimeError("first time")


def never_reports(config: dict[str, Any]) -> None:
    pass


def with_checkpoints(config: dict[str, Any]) -> None:
    for step in range(3):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "step").write_text(str(step))
            tune.report(score(config, step), checkpoint=tune.Checkpoint.from_directory(folder))


def with_data(config: dict[str, Any], data: dict[str, float]) -> None:
    tune.report({**score(config), "offset": data["offset"]})


def dies(config: dict[str, Any]) -> None:
    tune.report(score(config))
    if config["nested"]["c"] % 3 == 0:
        os._exit(1)


class Stepwise(tune.Trainable):
    """A class trainable that checkpoints and can be reused."""

    def setup(self, config: dict[str, Any]) -> None:
        self.step_number = 0

    def step(self) -> dict[str, Any]:
        self.step_number += 1
        return score(self.config, self.step_number)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, "state.json").write_text(json.dumps(self.step_number))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        self.step_number = json.loads(Path(checkpoint_dir, "state.json").read_text())

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.config = new_config
        self.step_number = 0
        return True


class NotReusable(Stepwise):
    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return False


def _date_of_its_own() -> str:
    # Sweeps of one name that begin in the same second share a staging directory, says Ray, whoever
    # runs them; with it, their trials would get suffixes, as if they had been there before.
    later = timedelta(seconds=int.from_bytes(os.urandom(4), "big"))
    return (datetime.now() + later).strftime("%Y-%m-%d_%H-%M-%S")


ray.tune.utils.date_str = _date_of_its_own


def number_trials_anew() -> None:
    """Give the trials that searchers make ids in the order in which they are made.

    Ray's own are random, and those of its tests count every time a searcher is asked, also when it
    has nothing to suggest just now; how often that happens is up to the clock.
    """
    made = 0

    def create(self: SearchGenerator, spec: dict[str, Any]) -> Trial | None:
        nonlocal made
        trial = _create_trial_if_possible(self, spec)
        made += trial is not None
        return trial

    Trial.generate_id = classmethod(lambda cls: f"id{made:05d}")
    SearchGenerator.create_trial_if_possible = create


def let_ray_number_trials() -> None:
    """Undo :func:`number_trials_anew`: it gives trials that no searcher makes the same id."""
    Trial.generate_id = _generate_id
    SearchGenerator.create_trial_if_possible = _create_trial_if_possible


def fit(
    trainable: Any,
    storage: Path,
    callbacks: list[tune.Callback],
    *,
    samples: int = 8,
    space: dict[str, Any] | None = None,
    concurrent: int = 0,
    name: str = "sweep",
    tune_config: dict[str, Any] | None = None,
    run_config: dict[str, Any] | None = None,
) -> tune.ResultGrid:
    """A small sweep with fixed samples. ``tune_config`` and ``run_config`` add to the defaults.

    ``concurrent``: at most so many trials at once; 0 for as many as there are cores.
    """
    number_trials_anew()
    random.seed(SEED)
    np.random.seed(SEED)
    space = SPACE if space is None else space
    tuner = tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            **{
                "num_samples": samples,
                "metric": "score",
                "mode": "max",
                "search_alg": BasicVariantGenerator(random_state=SEED, max_concurrent=concurrent),
                "reuse_actors": True,
                **(tune_config or {}),
            }
        ),
        run_config=tune.RunConfig(
            **{
                "name": name,
                "storage_path": str(storage),
                "verbose": 0,
                "callbacks": callbacks,
                **(run_config or {}),
            }
        ),
    )
    return tuner.fit()


def stable(metrics: dict[str, Any] | None) -> dict[str, Any]:
    """Metrics without what differs from run to run; NaN made comparable."""
    return {
        key: _comparable(value) for key, value in (metrics or {}).items() if key not in VOLATILE
    }


def _comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _comparable(inner) for key, inner in value.items()}
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    return value


def stable_frame(frame: pd.DataFrame | None) -> pd.DataFrame:
    if frame is None:
        return pd.DataFrame()
    return frame[[column for column in frame.columns if column not in VOLATILE]]


def error_text(error: Any) -> str:
    """The last line of Ray's text of an error; the rest has process ids and times."""
    if not error:
        return ""
    # What killed a trial follows Ray's text.
    return str(error).partition("\nray-tune-memguard: ")[0].strip().splitlines()[-1]


def raised(call: Callable[[], Any]) -> Any:
    """What a call returns, or the kind and text of what it raises."""
    try:
        return call()
    except Exception as error:
        return type(error).__name__, str(error)
