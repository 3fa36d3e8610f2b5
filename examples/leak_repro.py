"""The memory growth of a Ray Tune driver, reproduced: many tiny trials, one scalar each.

Run it without MemGuard and watch the RSS climb with every finished trial; run it with MemGuard and
watch it stay::

    python examples/leak_repro.py --trials 1000 --reuse-actors --no-memguard
    python examples/leak_repro.py --trials 1000 --reuse-actors --memguard
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

# Trials do nothing with their working directory, and nobody counts them.
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import psutil
import ray
from ray import tune

from ray_tune_memguard import MemGuard, RssReporter


def train(config: dict[str, float]) -> None:
    """One result: a number made of the three sampled parameters."""
    tune.report({"score": config["a"] * config["b"] + config["c"]})


def run(options: argparse.Namespace) -> None:
    """Run the sweep, print the RSS after it, and write the figures down if asked to."""
    if options.memguard:
        callback = MemGuard(every_trials=options.report_interval)
    else:
        callback = RssReporter(every_trials=options.report_interval)
    ray.init(address="local", num_cpus=options.cpus, include_dashboard=False, log_to_driver=False)
    tuner = tune.Tuner(
        train,
        param_space={
            "a": tune.uniform(0.0, 1.0),
            "b": tune.loguniform(1e-4, 1.0),
            "c": tune.choice([1, 2, 3]),
        },
        tune_config=tune.TuneConfig(
            num_samples=options.trials,
            metric="score",
            mode="max",
            reuse_actors=options.reuse_actors,
        ),
        run_config=tune.RunConfig(
            name="leak-repro", storage_path=options.storage, verbose=0, callbacks=[callback]
        ),
    )
    results = tuner.fit()
    rss = psutil.Process().memory_info().rss
    best = results.get_best_result().metrics["score"]
    print(f"After fit(): {len(results)} results, best score {best:.4f}, RSS {rss / 2**20:.0f} MiB")
    if options.summary:
        summary = {"experiment": results.experiment_path, "rss_after_fit": rss}
        Path(options.summary).write_text(json.dumps(summary))
    ray.shutdown()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000, help="how many trials (1000)")
    parser.add_argument(
        "--report-interval", type=int, default=100, help="an RSS line every so many trials (100)"
    )
    parser.add_argument(
        "--memguard",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with MemGuard, or Ray alone (with)",
    )
    parser.add_argument(
        "--reuse-actors",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="reuse actors from trial to trial, or a fresh one each (fresh)",
    )
    parser.add_argument("--cpus", type=int, default=2, help="trials at a time (2)")
    parser.add_argument("--storage", default=None, help="where results go (a new temporary folder)")
    parser.add_argument("--summary", default=None, help="write the last figures to this JSON file")
    options = parser.parse_args(arguments)
    options.storage = options.storage or tempfile.mkdtemp(prefix="leak-repro-")
    return options


if __name__ == "__main__":
    run(parse())
