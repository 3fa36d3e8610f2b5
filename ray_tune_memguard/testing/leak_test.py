"""What a test has: it runs sweeps, or measures those of the test, and says what is wrong."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import ray
from ray import tune

from ray_tune_memguard import options as opt
from ray_tune_memguard.testing.meter import GrowthMeter
from ray_tune_memguard.testing.verdict import Limit, problem

if TYPE_CHECKING:
    from ray.tune import Callback, ResultGrid

_METRIC = "score"
#: Trials of a sweep that exist and have not finished, unless a test says otherwise.
_MAX_CONCURRENT_TRIALS = 4
_NO_LOGGERS = "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"


class LeakTest:
    """Tests whether callbacks, a searcher or a scheduler leak: what the fixture ``memguard`` is.

    It measures by how many bytes per trial the memory grows that Python keeps in the driver, with
    MemGuard in place, so that what Ray itself keeps does not count. The first third of a sweep (up
    to 100 trials) is warm-up.

    Args:
        bytes_per_trial: bytes by which memory may grow with each trial, also with a unit such as
            ``"2 KB"``. Default 2 KB, or ``TUNE_MEMGUARD_BYTES_PER_TRIAL``.
        trials: number of trials of a sweep, at least 200. Default 300, or
            ``TUNE_MEMGUARD_TRIALS``.
        storage: the directory for the results of :meth:`run`; None for a new one.

    Attributes:
        callback: for a ``Tuner`` of one's own: add it to ``RunConfig(callbacks=[…])``, as the last
            one. It contains a ``MemGuard``.
        trials: number of trials that a sweep needs; use it as ``num_samples``.

    Raises:
        ValueError, TypeError: an argument, or its environment variable, is not allowed.

    Example:
        >>> from ray_tune_memguard.testing import LeakTest
        >>> test = LeakTest(bytes_per_trial="2 KB", trials=300)
        >>> test.trials
        300
        >>> test.problem()
        'No sweep was measured: call memguard.run(…), or add memguard.callback to your Tuner.'
        >>> LeakTest(trials=10)
        Traceback (most recent call last):
        ValueError: trials must be a whole number of at least 200; got 10
    """

    def __init__(
        self,
        bytes_per_trial: float | str | opt.Unset = opt.UNSET,
        trials: int | opt.Unset = opt.UNSET,
        storage: Path | None = None,
    ) -> None:
        self._limit = Limit.of(bytes_per_trial, trials)
        self._storage = storage
        self._has_started_ray = False
        self.trials = self._limit.trials
        self.callback = GrowthMeter(self._limit)

    def run(
        self,
        *callbacks: Callback,
        trainable: Callable[[dict[str, float]], None] | type[tune.Trainable] | str | None = None,
        param_space: Mapping[str, object] | None = None,
        **tune_config: object,
    ) -> ResultGrid:
        """Run a sweep of :attr:`trials` trials with what is tested.

        If Ray does not run, a small local Ray is started, which ends with the test.

        Args:
            callbacks: the callbacks that are tested.
            trainable: what a trial runs. Default: a function that reports ``x`` as ``score``.
            param_space: the search space; ``{}`` for a searcher that has its own. Default: ``x``
                from 0 to 1.
            tune_config: further arguments of ``tune.TuneConfig``, such as ``search_alg`` and
                ``scheduler``. Defaults: ``metric="score"``, ``mode="max"``, ``reuse_actors=True``
                and ``max_concurrent_trials=4``.

        Returns:
            The results.

        Raises:
            TypeError: a callback is none, or ``num_samples`` is given.

        Example:
            >>> from ray_tune_memguard.testing import LeakTest
            >>> LeakTest().run(num_samples=10)
            Traceback (most recent call last):
            TypeError: num_samples is the number of trials: set it with trials=
        """
        for callback in callbacks:
            if not isinstance(callback, tune.Callback):
                raise TypeError(f"callbacks must be objects of ray.tune.Callback; got {callback!r}")
        if "num_samples" in tune_config:
            raise TypeError("num_samples is the number of trials: set it with trials=")
        defaults = {
            "metric": _METRIC,
            "mode": "max",
            "reuse_actors": True,
            "max_concurrent_trials": _MAX_CONCURRENT_TRIALS,
        }
        config = tune.TuneConfig(
            num_samples=self.trials,
            **{**defaults, **tune_config},  # type: ignore[arg-type]
        )
        space = {"x": tune.uniform(0, 1)} if param_space is None else dict(param_space)
        if not ray.is_initialized():
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            self._has_started_ray = True
        if self._storage is None:
            self._storage = Path(mkdtemp(prefix="memguard-"))
        with _without_loggers():
            return tune.Tuner(
                trainable or _trainable(),
                param_space=space,
                tune_config=config,
                run_config=tune.RunConfig(
                    storage_path=str(self._storage),
                    verbose=0,
                    callbacks=[*callbacks, self.callback],
                ),
            ).fit()

    def problem(self) -> str:
        """Why the test fails, in words; empty if it passes.

        It fails if no sweep was measured, if one had too few trials, or if the 95 % interval of a
        slope lies above ``bytes_per_trial``. Then it says who holds the memory.
        """
        if not self.callback.measurements:
            return (
                "No sweep was measured: call memguard.run(…), or add memguard.callback to your "
                "Tuner."
            )
        found = (problem(measured, self._limit) for measured in self.callback.measurements)
        return "\n".join(filter(None, found))

    def close(self) -> None:
        """End the Ray that :meth:`run` has started."""
        if self._has_started_ray:
            self._has_started_ray = False
            ray.shutdown()


@contextmanager
def _without_loggers() -> Iterator[None]:
    """Ray's loggers only take time, unless the user has decided about them."""
    if _NO_LOGGERS in os.environ:
        yield
        return
    os.environ[_NO_LOGGERS] = "1"
    try:
        yield
    finally:
        os.environ.pop(_NO_LOGGERS, None)


def _trainable() -> Callable[[dict[str, float]], None]:
    # Ray sends a function within a function by value, so that workers need not import this module.
    def report_x(config: dict[str, float]) -> None:
        tune.report({_METRIC: config.get("x", 0.0)})

    return report_x
