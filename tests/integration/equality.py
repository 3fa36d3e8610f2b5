"""Runs a sweep by Ray alone and with MemGuard, and compares all that one can ask the results."""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow.fs
import pytest
from ray import cloudpickle, tune
from ray.air.result import Result
from ray.tune import ResultGrid
from ray.tune.analysis import ExperimentAnalysis
from ray.tune.experiment import Trial

from ray_tune_memguard import MemGuard
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from tests.integration import sweeps

# Of trials and what they hold: clocks, and caches that are made again when asked for.
VOLATILE_ATTRIBUTES = {
    *sweeps.VOLATILE,
    "start_time",
    "last_result_time",
    "_cached_json",
    "_state_json",
    "_time",
    "_timestamp",
    "_start_time",
    # Shared by all trials of a sweep: which upload is under way just now.
    "syncer",
    # A reference that only a trial without any result needs; a spilled one has what it refers to.
    "_default_result_or_future",
}
# A directory of the test, and the time in the names of directories.
_VARYING_TEXT = (
    (re.compile(r"results\d+"), "results"),
    (re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d"), "TIME"),
)


@dataclass
class Case:
    """A sweep. A ``partial`` among the values is called to make that value anew for each run."""

    trainable: Any
    tune_config: dict[str, Any] = field(default_factory=dict)
    run_config: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] | None = None
    samples: int = 4
    concurrent: int = 0
    #: A module that the case cannot do without.
    needs: str | None = None
    #: Whether the sweep did what the case is about; otherwise it would show nothing.
    shows: Callable[[ResultGrid], bool] = len


class Both(NamedTuple):
    """The grid of Ray alone, and that with MemGuard."""

    plain: ResultGrid
    guarded: ResultGrid


def _made(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value() if isinstance(value, functools.partial) else value
        for name, value in options.items()
    }


def run(case: Case, storage: Path, guards: list[Any]) -> ResultGrid:
    run_config = _made(case.run_config)
    callbacks = [*guards, *run_config.pop("callbacks", [])]
    return sweeps.fit(
        case.trainable,
        storage,
        callbacks,
        samples=case.samples,
        space=case.space,
        concurrent=case.concurrent,
        tune_config=_made(case.tune_config),
        run_config=run_config,
    )


def run_both(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Both:
    if case.needs is not None:
        pytest.importorskip(case.needs, reason=f"{case.needs} is not installed")
    both = Both(*(run(case, tmp_path_factory.mktemp("results"), g) for g in ([], [MemGuard()])))
    assert was_guarded(both.guarded), "nothing was guarded"
    assert case.shows(both.plain), "it did not do what it is about"
    return both


def was_guarded(grid: ResultGrid) -> bool:
    return isinstance(grid._experiment_analysis.trials, SpilledTrials)


def assert_equal(both: Both, leave_out: Sequence[str] = ()) -> None:
    """Everything that is compared, one after the other."""
    assert set(leave_out) <= CHECKS.keys()
    for name, check in CHECKS.items():
        if name not in leave_out:
            check(both)


# What there is to compare, without what the clock decides.


def normal(value: Any, depth: int = 6) -> Any:
    """Any value in a form that is equal for equal sweeps."""
    if value is None or isinstance(value, (bool, int, bytes)):
        return value
    if isinstance(value, float):
        return "NaN" if value != value else value
    if isinstance(value, (str, Path)):
        return functools.reduce(
            lambda text, vary: vary[0].sub(vary[1], text), _VARYING_TEXT, str(value)
        )
    if isinstance(value, Trial):
        return "trial", value.trial_id
    if isinstance(value, tune.Checkpoint):
        return "checkpoint", type(value.filesystem).__name__, normal(value.path)
    if isinstance(value, pd.DataFrame):
        frame = sweeps.stable_frame(value)
        return "frame", [str(kind) for kind in frame.dtypes], normal(frame.to_dict("tight"))
    if isinstance(value, Mapping):
        return {
            normal(key): normal(inner, depth)
            for key, inner in value.items()
            if key not in VOLATILE_ATTRIBUTES
        }
    if isinstance(value, (list, tuple, deque)):
        return type(value).__name__, [normal(inner, depth) for inner in value]
    if isinstance(value, (set, frozenset)):
        return "set", sorted(map(repr, (normal(inner, depth) for inner in value)))
    if isinstance(value, BaseException):
        return type(value).__name__, normal(sweeps.error_text(value))
    if isinstance(value, pyarrow.fs.FileSystem) or depth == 0:
        return type(value).__name__
    if isinstance(value, type) or callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return type(value).__name__, normal(getattr(value, "__dict__", str(value)), depth - 1)


def asked(call: Callable[[], Any]) -> Any:
    """What a call returns, or what it raises, in the normal form."""
    try:
        return normal(call())
    except Exception as error:
        return "raised", type(error).__name__, normal(str(error))


def analysis_answers(analysis: ExperimentAnalysis) -> dict[str, Any]:
    """All that the public side of an ``ExperimentAnalysis`` has to say."""
    answers = {
        name: asked(lambda name=name: getattr(analysis, name))
        for name in dir(type(analysis))
        if not name.startswith("_") and isinstance(getattr(type(analysis), name), property)
    }
    answers["trials"] = normal(list(analysis.trials))
    for prefix in (False, True):
        answers[f"configs {prefix}"] = asked(lambda p=prefix: analysis.get_all_configs(p))
    for metric, mode in (("score", "max"), ("info/loss", "min"), ("missing", "max"), (None, None)):
        asks: dict[str, Callable[..., Any]] = {
            "dataframe": lambda m=metric, o=mode: analysis.dataframe(m, o),
            "last checkpoint": lambda m=metric, o=mode: analysis.get_last_checkpoint(
                metric=m, mode=o
            ),
        }
        for scope in ("last", "all", "avg", "last-5-avg", "last-10-avg", "none such"):
            asks[f"best trial {scope}"] = lambda m=metric, o=mode, s=scope: analysis.get_best_trial(
                m, o, s, filter_nan_and_inf=False
            )
            asks[f"best config {scope}"] = lambda m=metric, o=mode, s=scope: (
                analysis.get_best_config(m, o, s)
            )
        answers.update({f"{ask} {metric}": asked(call) for ask, call in asks.items()})
    for trial in analysis.trials:
        for metric in ("score", "missing"):
            answers[f"best checkpoint {trial.trial_id} {metric}"] = asked(
                lambda t=trial, m=metric: analysis.get_best_checkpoint(t, metric=m, mode="max")
            )
        answers[f"last checkpoint {trial.trial_id}"] = asked(
            lambda t=trial: analysis.get_last_checkpoint(trial=t)
        )
    return answers


def trial_answers(trial: Trial) -> dict[str, Any]:
    """Every attribute and property of a trial, and what its methods without arguments return."""
    properties = {
        name
        for name in dir(type(trial))
        if not name.startswith("__") and isinstance(getattr(type(trial), name), property)
    }
    answers = {
        name: asked(lambda name=name: getattr(trial, name))
        for name in properties | set(vars(trial))
        if name not in VOLATILE_ATTRIBUTES
    }
    # Which process ran it.
    answers.pop("temporary_state", None)
    answers["error"] = sweeps.error_text(trial.get_error())
    for method in (
        "get_pickled_error",
        "has_checkpoint",
        "is_finished",
        "get_ray_actor_ip",
        "get_trainable_cls",
        "should_checkpoint",
        "should_recover",
        "__str__",
        "__repr__",
        "__hash__",
    ):
        if method == "__hash__":
            answers["hashable"] = isinstance(hash(trial), int)
        else:
            answers[method] = asked(getattr(trial, method))
    answers["type"] = type(trial).__name__
    return answers


def by_trial(grid: ResultGrid) -> dict[str, Any]:
    """The results by trial: after a restore finished trials come first (docs/changes.md)."""
    return {
        trial.trial_id: (
            trial.status,
            normal(result.config),
            sweeps.stable(result.metrics),
            normal(result.checkpoint),
            sweeps.error_text(result.error),
            normal(result.metrics_dataframe),
        )
        for trial, result in zip(grid._experiment_analysis.trials, grid, strict=True)
    }


#: The second is whether the last result is empty, the trial's id included.
_BY_THE_CLOCK = {"done", "has_reported_at_least_once"}


def without_done(answers: Any) -> Any:
    """Answers of an experiment that was opened anew, without what is up to the clock.

    Ray writes of a last result that it is not done if the experiment happened to be saved before
    the trial completed, and puts the trial's id into an empty one if anybody happened to read it.
    """
    if isinstance(answers, dict):
        if answers.keys() == {"trial_id"}:
            return {}
        return {
            name: without_done(inner)
            for name, inner in answers.items()
            if name not in _BY_THE_CLOCK
        }
    if isinstance(answers, (list, tuple)):
        return type(answers)(map(without_done, answers))
    return answers


def what_restore_gives(path: Path, trainable: Any) -> dict[str, Any]:
    """What an experiment's directory says when it is opened, restored, and resumed."""
    opened = {
        trial.trial_id: trial_answers(trial) for trial in ExperimentAnalysis(str(path)).trials
    }
    tuner = tune.Tuner.restore(str(path), trainable=trainable, resume_errored=True)
    restored = by_trial(tuner.get_results())
    try:
        resumed = by_trial(tuner.fit())
    except Exception as error:
        resumed = {"raised": type(error).__name__, "error": sweeps.error_text(error)}
    return without_done({"opened": opened, "restored": restored, "resumed": resumed})


def differences(found: Any, expected: Any, path: str = "") -> dict[str, Any]:
    """What differs, as pairs by path: of two long structures an assertion would show too much."""
    if isinstance(found, dict) and isinstance(expected, dict):
        pairs = [
            (name, found.get(name, "missing"), expected.get(name, "missing"))
            for name in sorted(found.keys() | expected.keys(), key=str)
        ]
    elif (
        isinstance(found, (list, tuple))
        and type(found) is type(expected)
        and len(found) == len(expected)
    ):
        pairs = list(zip(range(len(found)), found, expected, strict=True))
    else:
        return {} if found == expected else {path: (found, expected)}
    return {
        where: pair
        for name, one, other in pairs
        for where, pair in differences(one, other, f"{path}/{name}").items()
    }


def files(grid: ResultGrid) -> dict[str, Any]:
    """The files of the experiment, and for result files what they say."""
    root = Path(grid.experiment_path)
    found: dict[str, Any] = {}
    for path in sorted(root.glob("*/**/*")):
        relative = path.relative_to(root)
        if path.is_file() and relative.parts[0] != ".memguard":
            # A retried trial has one event file or two, as the clock will have it.
            name = "events" if path.name.startswith("events") else path.name
            found[normal(str(relative.with_name(name)))] = _content(path)
    return found


def _content(path: Path) -> Any:
    if path.name == "result.json":
        return [normal(line) for line in pd.read_json(path, lines=True).to_dict("records")]
    if path.name == "progress.csv":
        return normal(pd.read_csv(path)) if path.stat().st_size else ""
    if path.name in ("params.json",):
        return path.read_text()
    return None


# The comparisons.


def check_nothing_stayed_in_memory(both: Both) -> None:
    trials = both.guarded._experiment_analysis.trials
    assert [trial for trial in trials.resident() if trial.is_finished()] == []
    assert len(trials) > 0
    before = trials.cache.active()
    assert len(both.guarded.get_dataframe()) == len(both.plain.get_dataframe())
    assert list(map(id, trials.cache.active())) == list(map(id, before))


def check_results(both: Both) -> None:
    plain, guarded = both
    assert len(guarded) == len(plain)
    for expected, result in zip(plain, guarded, strict=True):
        assert type(result) is Result
        assert sweeps.stable(result.metrics) == sweeps.stable(expected.metrics)
        assert result.config == expected.config
        assert normal(result.path) == normal(expected.path)
        assert sweeps.error_text(result.error) == sweeps.error_text(expected.error)
        assert type(result.error).__name__ == type(expected.error).__name__
        assert normal(result.checkpoint) == normal(expected.checkpoint)
        if result.checkpoint is not None:
            with result.checkpoint.as_directory() as folder:
                assert list(Path(folder).iterdir())
        assert normal(result.best_checkpoints) == normal(expected.best_checkpoints)
        pd.testing.assert_frame_equal(
            sweeps.stable_frame(result.metrics_dataframe),
            sweeps.stable_frame(expected.metrics_dataframe),
        )


def check_grid_as_a_sequence(both: Both) -> None:
    plain, guarded = both
    assert [r.config for r in guarded[1:3]] == [r.config for r in plain[1:3]]
    assert guarded[-1].config == plain[-1].config
    assert guarded[0] is guarded[0] or guarded[0].config == plain[0].config
    assert asked(lambda: guarded[len(plain)]) == asked(lambda: plain[len(plain)])
    assert guarded.num_errors == plain.num_errors
    assert guarded.num_terminated == plain.num_terminated
    assert normal(guarded.errors) == normal(plain.errors)
    assert type(guarded.filesystem) is type(plain.filesystem)


def check_best_result(both: Both) -> None:
    for scope in ("last", "all", "avg", "last-5-avg", "last-10-avg"):
        for metric in ("score", "info/loss", "info/nan", "missing"):
            plain, guarded = (
                asked(
                    lambda grid=grid, m=metric, s=scope: sweeps.stable(
                        grid.get_best_result(metric=m, mode="min", scope=s).metrics
                    )
                )
                for grid in both
            )
            assert guarded == plain, (scope, metric)


def check_dataframe(both: Both) -> None:
    for metric, mode in ((None, None), ("score", "max"), ("info/loss", "min")):
        plain, guarded = (asked(lambda g=g, m=metric, o=mode: g.get_dataframe(m, o)) for g in both)
        assert guarded == plain, metric


def check_analysis(both: Both) -> None:
    plain, guarded = (analysis_answers(grid._experiment_analysis) for grid in both)
    assert differences(guarded, plain) == {}
    assert type(both.guarded._experiment_analysis.get_all_configs()) is dict


def check_trials(both: Both) -> None:
    plain, guarded = (grid._experiment_analysis.trials for grid in both)
    for expected, trial in zip(plain, guarded, strict=True):
        assert differences(trial_answers(trial), trial_answers(expected)) == {}
        assert set(vars(trial)) == set(vars(expected))
        assert type(trial) is type(expected)


def check_pickles(both: Both) -> None:
    """Pickles open as plain Ray, without this package, and say the same."""
    for take in (lambda grid: grid, lambda grid: grid._experiment_analysis):
        expected, pickled = (cloudpickle.dumps(take(grid)) for grid in both)
        assert b"ray_tune_memguard" not in pickled
        plain, guarded = cloudpickle.loads(expected), cloudpickle.loads(pickled)
        if isinstance(guarded, ResultGrid):
            check_results(Both(plain, guarded))
            plain, guarded = plain._experiment_analysis, guarded._experiment_analysis
        assert type(guarded.trials) is list
        assert differences(analysis_answers(guarded), analysis_answers(plain)) == {}


def check_reopened(both: Both) -> None:
    """What the experiment's directory says to whoever opens it later."""
    answers = []
    for grid in both:
        analysis = ExperimentAnalysis(grid.experiment_path, storage_filesystem=grid.filesystem)
        # Finished trials come in the order in which they finished (docs/changes.md).
        trials = sorted(analysis.trials, key=lambda trial: trial.trial_id)
        answers.append([without_done(trial_answers(trial)) for trial in trials])
    for expected, found in zip(*answers, strict=True):
        assert differences(found, expected) == {}


def check_files(both: Both) -> None:
    plain, guarded = (files(grid) for grid in both)
    assert guarded == plain


CHECKS: dict[str, Callable[[Both], None]] = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}
