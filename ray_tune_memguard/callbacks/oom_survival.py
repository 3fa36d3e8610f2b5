"""Lets a run continue after Ray's memory monitor has killed one of its trials."""

from __future__ import annotations

from ray_tune_memguard import options as opt
from ray_tune_memguard.callbacks.base import GuardCallback


class OomSurvival(GuardCallback):
    """Lets a trial that Ray's memory monitor kills fail like any other trial.

    Without this callback the first such kill ends the whole run: ``fit()`` raises
    ``RuntimeError: Caught unexpected exception``, whatever ``max_failures`` is. With it Ray applies
    ``max_failures``, the other trials continue, and ``Result.error`` is a ``RayActorError`` with
    the monitor's text.

    Args:
        survive_oom: whether the callback is active; False keeps Ray's behaviour. Default True, or
            ``TUNE_MEMGUARD_SURVIVE_OOM``.

    Raises:
        ValueError, TypeError: the argument, or its environment variable, is not allowed.

    Examples:
        >>> from ray_tune_memguard import OomSurvival
        >>> OomSurvival().survive_oom
        True
    """

    def __init__(self, survive_oom: bool | opt.Unset = opt.UNSET) -> None:
        self.survive_oom = opt.resolve("survive_oom", survive_oom, True, opt.flag)
        self.options = {"survive_oom": self.survive_oom}

    def begin(self) -> None:
        if self.survive_oom:
            self.run.tolerate_out_of_memory()
