"""Leak tests that pytest runs, of real sweeps."""

from __future__ import annotations

import pytest

# Here, because pytester forgets what is imported within its runs, and Ray does not bear that.
import ray_tune_memguard.testing  # noqa: F401

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.latest_only

SOURCE = """
import numpy as np
import pytest
from ray import tune
from ray.tune.search import Searcher

class Learner(Searcher):
    def __init__(self):
        super().__init__(metric="score", mode="max")
        self.seen = []

    def suggest(self, trial_id):
        return {"x": len(self.seen) % 7}

    def on_trial_complete(self, trial_id, result=None, error=False):
        # Enough for any machine; large blocks come from malloc.
        self.seen.append((np.ones(1250), result))

    def save(self, path):
        pass

    def restore(self, path):
        pass

@pytest.mark.memguard(trials=200)
def test_a_searcher(memguard):
    grid = memguard.run(search_alg=Learner(), param_space={})
    assert len(grid) == 200

class Bounded(tune.Callback):
    def on_trial_complete(self, **info):
        self.last = np.ones(1250)

@pytest.mark.memguard(trials=200)
def test_a_tuner_of_ones_own(memguard, tmp_path):
    def train(config):
        tune.report({"score": config["x"]})

    tune.Tuner(
        train,
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(num_samples=memguard.trials, reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path), verbose=0, callbacks=[Bounded(), memguard.callback]
        ),
    ).fit()

class EndsSpilling(tune.Callback):
    def __init__(self, guard):
        self.guard = guard

    def on_step_end(self, trials, **info):
        if any(trial.is_finished() for trial in trials):
            self.guard.run.take_out()

    def __reduce__(self):
        return tune.Callback, ()

@pytest.mark.memguard(trials=200)
def test_a_sweep_whose_trials_are_not_spilled(memguard):
    memguard.run(EndsSpilling(memguard.callback))
"""


@pytest.mark.slow
def test_what_leaks_fails_and_what_does_not_passes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SOURCE)
    result = pytester.runpytest_inprocess("-p", "ray_tune_memguard_pytest")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "The driver's memory grows by +* KiB per trial *bytes_per_trial=2.0 KiB is allowed.",
            "What grows, by bytes per trial:",
            "* Learner.seen (native, *",
            "*Your searcher keeps *",
            "Growth cannot be judged: MemGuard does not spill finished trials *",
            "FAILED *test_a_searcher*",
        ]
    )
