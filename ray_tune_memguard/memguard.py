"""MemGuard: the callbacks of this package combined, with defaults for most experiments."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ray_tune_memguard import options as opt
from ray_tune_memguard.callbacks.base import GuardCallback, guarded
from ray_tune_memguard.callbacks.head_node_reporter import HeadNodeReporter
from ray_tune_memguard.callbacks.launch_gate import LaunchGate
from ray_tune_memguard.callbacks.metrics_exporter import MetricsExporter
from ray_tune_memguard.callbacks.object_growth_tracker import ObjectGrowthTracker
from ray_tune_memguard.callbacks.object_store_reporter import ObjectStoreReporter
from ray_tune_memguard.callbacks.oom_survival import OomSurvival
from ray_tune_memguard.callbacks.result_histories import ResultHistories
from ray_tune_memguard.callbacks.rss_reporter import RssReporter
from ray_tune_memguard.callbacks.trial_death_reporter import TrialDeathReporter
from ray_tune_memguard.callbacks.trial_memory_reporter import TrialMemoryReporter
from ray_tune_memguard.callbacks.trial_pruner import TrialPruner

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

# While no trial finishes, the reporter and the tracker are called this often.
_MEASURE_EVERY_S = 0.05


class MemGuard(GuardCallback):
    """Keeps the memory of a Tune driver flat, however many trials finish::

        tune.Tuner(train_fn, run_config=tune.RunConfig(callbacks=[MemGuard()]))

    or, without a change of code, ``RAY_TUNE_CALLBACKS=ray_tune_memguard.MemGuard``. It combines a
    :class:`TrialPruner`, a :class:`RssReporter`, an :class:`ObjectGrowthTracker`, an
    :class:`OomSurvival`, a :class:`TrialDeathReporter`, a :class:`ResultHistories`, a
    :class:`TrialMemoryReporter`, a :class:`LaunchGate`, a :class:`HeadNodeReporter`, an
    :class:`ObjectStoreReporter` and a :class:`MetricsExporter`, whose pages describe the arguments
    and their environment variables.

    Args:
        every_trials: finished trials between two RSS lines (:class:`RssReporter`).
        every_seconds: seconds without an RSS line after which one is logged (:class:`RssReporter`).
        spill_dir: directory for the trial stores (:class:`TrialPruner`).
        trim_every_trials: spilled trials between two checks of slack (:class:`TrialPruner`).
        trim_slack_mib: MiB of slack above which it is returned (:class:`TrialPruner`).
        sample_every_trials: finished trials between two samples (:class:`ObjectGrowthTracker`).
        growth_budget: share of the wall-clock time for samples (:class:`ObjectGrowthTracker`).
        survive_oom: whether the run survives Ray's memory monitor (:class:`OomSurvival`).
        report_deaths: whether deaths of trials are reported (:class:`TrialDeathReporter`).
        histories: where the results of all trials are kept (:class:`ResultHistories`).
        trial_memory_every_seconds: seconds between two looks at the running trials
            (:class:`TrialMemoryReporter`).
        launch_gate: whether trials wait while they do not fit (:class:`LaunchGate`).
        pause: share of the memory that trials may fill (:class:`LaunchGate`).
        resume: share below which a full node starts trials again (:class:`LaunchGate`).
        slow_start: whether one trial runs until its size is known (:class:`LaunchGate`).
        memory_per_trial: bytes that a trial needs at least (:class:`LaunchGate`).
        shed: whether the newest trial is paused when memory is short (:class:`LaunchGate`).
        stop_at: share of the memory at which the run ends resumably (:class:`LaunchGate`).
        head_every_seconds: seconds between two looks at the head (:class:`HeadNodeReporter`).
        objects_every_seconds: seconds between two looks at the object store
            (:class:`ObjectStoreReporter`).
        metrics_port: port of the metrics for Prometheus (:class:`MetricsExporter`).
        metrics_host: address of the metrics (:class:`MetricsExporter`).

    Raises:
        ValueError, TypeError: an argument, or its environment variable, is not allowed.

    Examples:
        >>> from ray import tune
        >>> from ray_tune_memguard import MemGuard
        >>> config = tune.RunConfig(callbacks=[MemGuard(every_trials=500)])
        >>> MemGuard(every_trials=0)
        Traceback (most recent call last):
        ValueError: every_trials must be a whole number of at least 1, or None; got 0
    """

    def __init__(
        self,
        *,
        every_trials: int | opt.Unset | None = opt.UNSET,
        every_seconds: float | opt.Unset | None = opt.UNSET,
        spill_dir: str | os.PathLike[str] | opt.Unset | None = opt.UNSET,
        trim_every_trials: int | opt.Unset | None = opt.UNSET,
        trim_slack_mib: float | opt.Unset | None = opt.UNSET,
        sample_every_trials: int | opt.Unset = opt.UNSET,
        growth_budget: float | opt.Unset = opt.UNSET,
        survive_oom: bool | opt.Unset = opt.UNSET,
        report_deaths: bool | opt.Unset = opt.UNSET,
        histories: str | opt.Unset = opt.UNSET,
        trial_memory_every_seconds: float | opt.Unset | None = opt.UNSET,
        launch_gate: bool | opt.Unset = opt.UNSET,
        pause: float | opt.Unset | None = opt.UNSET,
        resume: float | opt.Unset | None = opt.UNSET,
        slow_start: bool | opt.Unset = opt.UNSET,
        memory_per_trial: float | str | opt.Unset | None = opt.UNSET,
        shed: bool | opt.Unset = opt.UNSET,
        stop_at: float | opt.Unset | None = opt.UNSET,
        head_every_seconds: float | opt.Unset | None = opt.UNSET,
        objects_every_seconds: float | opt.Unset | None = opt.UNSET,
        metrics_port: int | opt.Unset | None = opt.UNSET,
        metrics_host: str | opt.Unset = opt.UNSET,
    ) -> None:
        self.pruner = TrialPruner(
            spill_dir=spill_dir, trim_every_trials=trim_every_trials, trim_slack_mib=trim_slack_mib
        )
        self.reporter = RssReporter(every_trials=every_trials, every_seconds=every_seconds)
        self.tracker = ObjectGrowthTracker(
            sample_every_trials=sample_every_trials, growth_budget=growth_budget
        )
        self.survival = OomSurvival(survive_oom=survive_oom)
        self.deaths = TrialDeathReporter(report_deaths=report_deaths)
        self.histories = ResultHistories(histories=histories)
        self.memory = TrialMemoryReporter(trial_memory_every_seconds=trial_memory_every_seconds)
        self.gate = LaunchGate(
            launch_gate=launch_gate,
            pause=pause,
            resume=resume,
            slow_start=slow_start,
            memory_per_trial=memory_per_trial,
            shed=shed,
            stop_at=stop_at,
        )
        self.head = HeadNodeReporter(head_every_seconds=head_every_seconds)
        self.objects = ObjectStoreReporter(objects_every_seconds=objects_every_seconds)
        self.metrics = MetricsExporter(metrics_port=metrics_port, metrics_host=metrics_host)
        # The order matters: results are committed before a spill, RSS is reported after it.
        self._parts: tuple[GuardCallback, ...] = (
            self.histories,
            self.pruner,
            self.reporter,
            self.tracker,
            self.survival,
            self.deaths,
            self.memory,
            self.gate,
            self.head,
            self.objects,
            self.metrics,
        )
        self._forget_run()
        self.options = {name: value for part in self._parts for name, value in part.options.items()}

    @property
    def prunes(self) -> TrialPruner:
        return self.pruner

    def begin(self) -> None:
        self._forget_run()
        self.pruner.commit_results = self.histories.commit
        for part in self._parts:
            part.begin_run(self.run)

    def disable(self, error: Exception) -> None:
        super().disable(error)
        for part in self._parts:
            part.active = False
        self.histories.give_back()
        self.metrics.stop()
        if hasattr(self, "run"):
            self.run.take_out()

    def _forget_run(self) -> None:
        self._has_begun = self._has_news = False
        self._measure_at = 0.0

    @guarded
    def on_step_begin(self, iteration: int, trials: list[Trial], **info: object) -> None:
        # The parts use only the first step of a run.
        if not self._has_begun:
            self._has_begun = True
            for part in self._parts:
                part.on_step_begin(iteration=iteration, trials=trials, **info)

    @guarded
    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        # A trial that is spilled has finished, so its results must be in the store by then.
        if not self.histories.active or self.histories.commit(self.pruner.may_spill()):
            self.pruner.on_step_end(iteration=iteration, trials=trials, **info)
        # Most steps end no trial, and come too soon for another report or sample.
        now = time.monotonic()
        is_time = now >= self._measure_at
        if is_time or self._has_news:
            self._has_news = False
            self.reporter.on_step_end(iteration=iteration, trials=trials, **info)
        if is_time:
            self._measure_at = now + _MEASURE_EVERY_S
            self.tracker.on_step_end(iteration=iteration, trials=trials, **info)
            self.deaths.on_step_end(iteration=iteration, trials=trials, **info)
            self.memory.on_step_end(iteration=iteration, trials=trials, **info)
            self.gate.on_step_end(iteration=iteration, trials=trials, **info)
            self.head.on_step_end(iteration=iteration, trials=trials, **info)
            self.objects.on_step_end(iteration=iteration, trials=trials, **info)
            self.metrics.on_step_end(iteration=iteration, trials=trials, **info)

    @guarded
    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        self.memory.on_trial_start(iteration, trials, trial, **info)

    @guarded
    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, object],
        **info: object,
    ) -> None:
        # The reporter counts trials only.
        self.pruner.on_trial_result(iteration, trials, trial, result, **info)
        self.tracker.on_trial_result(iteration, trials, trial, result, **info)

    @guarded
    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        # The pruner reads finished trials from the controller.
        self._has_news = True
        self.memory.on_trial_complete(iteration, trials, trial, **info)
        self.reporter.on_trial_complete(iteration, trials, trial, **info)
        self.tracker.on_trial_complete(iteration, trials, trial, **info)
        self.head.on_trial_complete(iteration, trials, trial, **info)
        self.objects.on_trial_complete(iteration, trials, trial, **info)
        self.metrics.on_trial_complete(iteration, trials, trial, **info)

    @guarded
    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        self._has_news = True
        self.memory.on_trial_error(iteration, trials, trial, **info)
        self.reporter.on_trial_error(iteration, trials, trial, **info)
        self.tracker.on_trial_error(iteration, trials, trial, **info)
        self.head.on_trial_error(iteration, trials, trial, **info)
        self.objects.on_trial_error(iteration, trials, trial, **info)
        self.metrics.on_trial_error(iteration, trials, trial, **info)

    @guarded
    def on_experiment_end(self, trials: list[Trial], **info: object) -> None:
        for part in self._parts:
            part.on_experiment_end(trials=trials, **info)
