"""Says for each trial whose process died what killed it, who used the memory, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from ray_tune_memguard import options as opt
from ray_tune_memguard.callbacks.base import GuardCallback, guarded
from ray_tune_memguard.callbacks.recording import RunRecords
from ray_tune_memguard.notices import logger
from ray_tune_memguard.report import driver_record
from ray_tune_memguard.report.driver_record import DriverRecord
from ray_tune_memguard.system.kernel_log import KernelWatch

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.diagnostics.deaths.investigation import Inquiry, Investigation
    from ray_tune_memguard.diagnostics.deaths.record import Death

_INVESTIGATION = "ray_tune_memguard.diagnostics.deaths.investigation"


class TrialDeathReporter(GuardCallback):
    """Reports each death of a trial's process: what killed it, how certain that is, and what to do.

    A death is one line in the log, the end of the text of ``Result.error`` and of the trial's error
    file, and a record with the experiment, which :func:`ray_tune_memguard.read_deaths` reads. It is
    told apart whether Ray's memory monitor, the kernel's OOM killer, a signal, an exit code or the
    end of the node killed the process. ``MemoryError`` and CUDA's out-of-memory errors of a trial
    count as deaths, too; other errors of its code do not. When the kernel killed the *driver* of an
    earlier run of the experiment, the next run says so.

    Args:
        report_deaths: whether the callback is active. Default True, or
            ``TUNE_MEMGUARD_REPORT_DEATHS``.

    Raises:
        ValueError, TypeError: the argument, or its environment variable, is not allowed.

    Examples:
        >>> from ray import tune
        >>> from ray_tune_memguard import TrialDeathReporter
        >>> config = tune.RunConfig(callbacks=[TrialDeathReporter()])
    """

    def __init__(self, report_deaths: bool | opt.Unset = opt.UNSET) -> None:
        self.report_deaths = opt.resolve("report_deaths", report_deaths, True, opt.flag)
        self.options = {"report_deaths": self.report_deaths}

    def begin(self) -> None:
        self._investigation: Investigation | None = None
        # By trial: deaths that Ray is handling.
        self._handled: dict[str, Inquiry] = {}
        # Deaths of which another node knows more.
        self._waiting: list[Inquiry] = []
        self._number_by_cause: Counter[str] = Counter()
        self._has_begun = False
        if not self.report_deaths:
            self.active = False
            return
        if not self.claim("death reports"):
            return
        name = type(self).__name__
        self._records = RunRecords(self.run, "deaths", name, self.notices)
        self._driver_records = RunRecords(self.run, driver_record.KIND, name, self.notices)
        self._watch = KernelWatch()
        self.run.observe_failures(self)

    def number_by_cause(self) -> dict[str, int]:
        """The number of deaths in this run, by cause."""
        return dict(getattr(self, "_number_by_cause", {}))

    @guarded
    def on_step_begin(self, iteration: int, trials: list[Trial], **info: object) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._record_driver(trials, driver_record.BEGIN)
            self._look_at_last_run()
            probes = self.run.node_probes(self)
            if probes is not None:
                # In another thread, because the first death would be 30 ms late otherwise.
                probes.ask_here(import_module, _INVESTIGATION)

    @guarded
    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        if self._waiting:
            self._report_those_over(trials)

    @guarded
    def on_experiment_end(self, trials: list[Trial], **info: object) -> None:
        for inquiry in self._waiting:
            inquiry.until = 0.0
        self._report_those_over(trials)
        self.run.release_nodes(self)
        if self._has_begun:
            self._record_driver(trials, driver_record.END)
        if self._number_by_cause:
            from ray_tune_memguard.diagnostics.deaths.report import summarize

            logger.warning(summarize(self._number_by_cause, self._records.path))

    def before_failure(
        self, trial: Trial, exception: Exception, actor_id: str | None
    ) -> str | None:
        """Find out what happened, before Ray handles the failure."""
        if not self.active:
            return None
        from ray_tune_memguard.diagnostics.deaths.evidence import is_about_a_process
        from ray_tune_memguard.diagnostics.deaths.investigation import Investigation

        if not is_about_a_process(exception):
            return None
        if self._investigation is None:
            self._investigation = Investigation(self.run, self._watch, self)
        inquiry = self._investigation.investigate(trial, exception, actor_id)
        if inquiry is None:
            return None
        self._handled[trial.trial_id] = inquiry
        return f"ray-tune-memguard: {inquiry.death.summary}"

    def after_failure(self, trial: Trial, is_retried: bool) -> None:
        """Report it, now that it is known whether Ray starts the trial again."""
        inquiry = self._handled.pop(trial.trial_id, None)
        if inquiry is None:
            return
        inquiry.death = replace(inquiry.death, is_retried=is_retried, failures=trial.num_failures)
        self._waiting.append(inquiry)
        self._report_those_over([trial])

    def _report_those_over(self, trials: Sequence[Trial]) -> None:
        for inquiry in [inquiry for inquiry in self._waiting if inquiry.is_over()]:
            self._waiting.remove(inquiry)
            self._report(inquiry.conclusion(), trials)

    def _report(self, death: Death, trials: Sequence[Trial]) -> None:
        again = " Ray starts the trial again." if death.is_retried else ""
        logger.warning("%s%s", death.summary, again)
        self._number_by_cause[death.cause] += 1
        self._records.add(trials, death)

    def _record_driver(self, trials: Sequence[Trial], event: str) -> None:
        self._driver_records.add(trials, DriverRecord.now(event, self._watch.began_s))

    def _look_at_last_run(self) -> None:
        own = self._driver_records.path
        try:
            last = None if own is None else driver_record.interrupted_run(own.parent, own)
        except (OSError, TypeError, ValueError) as error:
            self.notices.remark(
                "last run", f"The record of the last run's driver cannot be read: {error}."
            )
            return
        if last is not None:
            from ray_tune_memguard.diagnostics.deaths.driver import what_ended_it

            sentence = what_ended_it(*last)
            if sentence:
                logger.warning(sentence)
