"""One driver: begin a sweep, which the parent kills, or restore it and run it to its end.

``python -m tests.acceptance.kill_sweep begin ...`` and then ``... restore ...``, in two processes.
The rivals differ in one line: ``memguard`` has a ``MemGuard()`` before the last callback.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.search import BasicVariantGenerator

from benchmarks.child import set_environment, start_ray
from benchmarks.problem import METRIC, MODE, score, search_space
from tests.acceptance import kill_hooks
from tests.acceptance.kill_log import FIT, OPENED, RESTORE, write_line
from tests.acceptance.kill_trials import Finished, one_result

EXPERIMENT = "sweep"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.acceptance.kill_sweep", description=__doc__
    )
    parser.add_argument("act", choices=("begin", "restore"))
    parser.add_argument("--rival", choices=("ray", "memguard"), required=True)
    parser.add_argument("--searcher", choices=("variants", "optuna"), required=True)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--ray-directory", type=Path, required=True)
    parser.add_argument("--checkpoint-seconds", type=float, help="default: Ray's own")
    parser.add_argument("--out", type=Path, required=True, help="what restore found, JSON")
    return parser.parse_args(argv)


def _search_algorithm(searcher: str, seed: int) -> Any:
    if searcher == "variants":
        return BasicVariantGenerator(random_state=seed)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(sampler=optuna.samplers.TPESampler(seed=seed))


def _callbacks(rival: str) -> list[tune.Callback]:
    if rival == "ray":
        return [Finished()]
    from ray_tune_memguard import MemGuard

    return [MemGuard(), Finished()]


def _begin(arguments: argparse.Namespace) -> None:
    tuner = tune.Tuner(
        one_result,
        param_space=search_space(),
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode=MODE,
            num_samples=arguments.trials,
            reuse_actors=True,
            search_alg=_search_algorithm(arguments.searcher, arguments.seed),
        ),
        run_config=tune.RunConfig(
            name=EXPERIMENT,
            storage_path=str(arguments.storage.resolve()),
            callbacks=_callbacks(arguments.rival),
            verbose=0,
        ),
    )
    write_line(FIT)
    tuner.fit()


def _note_opening() -> None:
    """Write it down when Ray has read the experiment state; it raises if it cannot."""
    resume = TuneController.resume

    # With the parameters of the original: MemGuard leaves a Ray alone that it does not know.
    def resume_and_note(self: TuneController, resume_config: Any) -> None:
        resume(self, resume_config)
        write_line(OPENED)

    TuneController.resume = resume_and_note


def _expected(config: dict[str, Any]) -> float | None:
    """Return what the score has to be; a sweep that Ray began anew has trials without a config."""
    return score(config, 1) if config else None


def _restore(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.rival == "memguard":
        import ray_tune_memguard  # noqa: F401
    _note_opening()
    path = str(arguments.storage.resolve() / EXPERIMENT)
    write_line(RESTORE)
    grid = tune.Tuner.restore(path, trainable=one_result).fit()
    trials = [
        {
            "id": trial.trial_id,
            "status": trial.status,
            "score": trial.last_result.get(METRIC),
            "expected": _expected(trial.config),
        }
        for trial in grid._experiment_analysis.trials
    ]
    results = [
        {
            "id": result.metrics.get("trial_id"),
            "score": result.metrics.get(METRIC),
            "reports": 0 if result.metrics_dataframe is None else len(result.metrics_dataframe),
            "error": None if result.error is None else str(result.error),
        }
        for result in grid
    ]
    return {"trials": trials, "results": results, "errors": grid.num_errors}


def _end_with_parent() -> None:
    """End this process when its parent is gone: nobody would end a driver in its own session."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    arguments = parse_arguments(argv)
    _end_with_parent()
    faulthandler.register(signal.SIGUSR1)
    set_environment(loggers=True)
    os.environ.pop("_TEST_TUNE_TRIAL_UUID", None)
    if arguments.checkpoint_seconds is not None:
        os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = str(arguments.checkpoint_seconds)
    start_ray(arguments.ray_directory)
    if arguments.act == "begin":
        if arguments.rival == "memguard":
            import ray_tune_memguard  # noqa: F401
        kill_hooks.install_from_environment()
        _begin(arguments)
    else:
        record = _restore(arguments)
        arguments.out.write_text(json.dumps(record))
    ray.shutdown()


if __name__ == "__main__":
    main()
