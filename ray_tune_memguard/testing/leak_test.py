"""What a test has: it runs sweeps, or measures those of the test, and says what is wrong."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
#: Ray lets up to 200 trials of a random search wait, which take memory until the last ones start.
_FEW_PENDING = {"TUNE_MAX_PENDING_TRIALS_PG": "4"}
#: Ray's loggers only take time.
_NO_LOGGERS = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}


class LeakTest:
    """Tests whether callbacks, a searcher or a scheduler leak: what the fixture ``memguard`` is.

    It measures by how many bytes per trial the memory grows that Python keeps in the driver, with
    MemGuard in place, so that what Ray itself keeps does not count. The first fifth of a sweep is
    warm-up, and from 300 trials on at least 100. Use it in a ``with`` statement: as long as it
    lasts, Ray keeps few trials waiting (``TUNE_MAX_PENDING_TRIALS_PG``), whose memory would hide a
    leak.

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

    Examples:
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
        self._exits = ExitStack()
        self.trials = self._limit.trials
        self.callback = GrowthMeter(self._limit)

    def __enter__(self) -> LeakTest:
        self._exits.enter_context(_environment(_FEW_PENDING))
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.close()

    def run(
        self,
        *callbacks: Callback,
        trainable: Callable[[dict[str, float]], None] | type[tune.Trainable] | str | None = None,
        param_space: Mapping[str, object] | None = None,
        **tune_config: object,
    ) -> ResultGrid:
        """Run a sweep of :attr:`trials` trials with what is tested.

        If Ray does not run, a small local Ray is started, which ends with the ``with`` statement.
        Ray's loggers do not run, unless ``TUNE_DISABLE_AUTO_CALLBACK_LOGGERS`` is set.

        Args:
            callbacks: the callbacks that are tested.
            trainable: what a trial runs. Default: a function that reports ``x`` as ``score``.
            param_space: the search space; ``{}`` for a searcher that has its own. Default: ``x``
                from 0 to 1.
            tune_config: further arguments of ``tune.TuneConfig``, such as ``search_alg`` and
                ``scheduler``. Defaults: ``metric="score"``, ``mode="max"`` (both None for a
                scheduler that has its own), ``reuse_actors=True``.

        Returns:
            The results.

        Raises:
            TypeError: a callback is none, or ``num_samples`` is given.

        Examples:
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
        defaults = {"metric": _METRIC, "mode": "max", "reuse_actors": True}
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
            self._exits.callback(ray.shutdown)
        if self._storage is None:
            self._storage = Path(mkdtemp(prefix="memguard-"))
        with _environment(_NO_LOGGERS):
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

    def problem(self, first: int = 0) -> str:
        """Why the test fails, in words; empty if it passes.

        It fails if no sweep was measured, if one had too few trials, or if the 95 % interval of a
        slope lies above ``bytes_per_trial``. Then it says who holds the memory.

        Args:
            first: the number of the first sweep that is judged; 0 for all.
        """
        if not self.callback.measurements:
            return (
                "No sweep was measured: call memguard.run(…), or add memguard.callback to your "
                "Tuner."
            )
        found = (problem(measured, self._limit) for measured in self.callback.measurements[first:])
        return "\n".join(filter(None, found))


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set these variables, unless the user has."""
    ours = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _trainable() -> Callable[[dict[str, float]], None]:
    # Ray sends a function within a function by value, so that workers need not import this module.
    def report_x(config: dict[str, float]) -> None:
        tune.report({_METRIC: config.get("x", 0.0)})

    return report_x
