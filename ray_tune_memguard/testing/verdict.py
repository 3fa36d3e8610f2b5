"""Judges how a driver's memory has grown in one sweep. Pure: it measures nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from ray_tune_memguard import options as opt
from ray_tune_memguard.diagnostics import text
from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
from ray_tune_memguard.diagnostics.trend import Trend

BYTES_PER_TRIAL = "2 KB"
TRIALS = 300
#: Fewer do not show growth: caches fill during the first 50 to 100.
MIN_TRIALS = 200
#: A change by this share of the trials since warm-up could hide a leak, or be taken for one: some 5
#: KB of an unfinished trial are not told apart from what is tested.
_MAX_CHANGE = 0.1


@dataclass(frozen=True)
class Limit:
    """How much memory may grow, and the number of trials that must show it."""

    bytes_per_trial: int
    trials: int

    @classmethod
    def of(
        cls,
        bytes_per_trial: float | str | opt.Unset = opt.UNSET,
        trials: int | opt.Unset = opt.UNSET,
    ) -> Limit:
        """The limit by the arguments, the environment, or default.

        Raises:
            ValueError, TypeError: an argument, or its environment variable, is not allowed.
        """
        return cls(
            opt.resolve("bytes_per_trial", bytes_per_trial, BYTES_PER_TRIAL, opt.size),
            opt.resolve("trials", trials, TRIALS, opt.count_of_at_least(MIN_TRIALS)),
        )


@dataclass(frozen=True)
class Measurement:
    """What was measured of one sweep.

    Attributes:
        trials: number of trials that finished in it.
        growth: bytes per trial that Python keeps; None if that is not known.
        span: number of trials since warm-up.
        unfinished: lowest and highest number of unfinished trials in memory since warm-up.
        diagnosis: who holds memory; only if it grows faster than allowed.
        absent: what could not be measured, by name, with the reason.
        error: what ended the measurement; empty if nothing did.
    """

    trials: int
    growth: Trend | None = None
    span: int = 0
    unfinished: tuple[int, int] = (0, 0)
    diagnosis: Diagnosis | None = None
    absent: dict[str, str] = field(default_factory=dict)
    error: str = ""


def exceeds(growth: Trend | None, limit: Limit) -> bool:
    """Whether memory surely grows faster than allowed: not by a single step, say."""
    return growth is not None and growth.steady and growth.low > limit.bytes_per_trial


def problem(measured: Measurement, limit: Limit) -> str:
    """Why a test fails, in words; empty if it passes."""
    if measured.error:
        return f"Growth cannot be judged: {measured.error}"
    if measured.trials < limit.trials:
        return (
            f"Too few trials to judge growth: {measured.trials:,} finished in a sweep, and "
            f"trials={limit.trials} are needed. Give the Tuner num_samples=memguard.trials, or ask "
            f"for fewer with trials= (at least {MIN_TRIALS})."
        )
    if measured.growth is None:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in measured.absent.items())
        return f"Growth cannot be judged, because memory could not be measured. {reasons}".rstrip()
    least, most = measured.unfinished
    if most - least > _MAX_CHANGE * measured.span:
        return (
            f"Growth cannot be judged, because the number of unfinished trials varied from {least} "
            f"to {most}, and each takes memory. Set max_concurrent_trials in TuneConfig."
        )
    if not exceeds(measured.growth, limit):
        return ""
    return "\n".join([_growth(measured.growth, limit), *_who(measured.diagnosis)])


def _growth(growth: Trend, limit: Limit) -> str:
    low, high = (text.slope(value, None) for value in (growth.low, growth.high))
    return (
        f"The driver's memory grows by {text.slope(growth.slope, None)} per trial (95 % interval: "
        f"{low} to {high}); bytes_per_trial={text.size(limit.bytes_per_trial)} is allowed."
    )


def _who(found: Diagnosis | None) -> list[str]:
    if found is None:
        return []
    # A list of types helps only where no site is known.
    types = [] if found.holders else found.types
    return text.growth(found.holders, types, found)
