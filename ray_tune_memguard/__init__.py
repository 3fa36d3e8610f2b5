"""Ray Tune callbacks that keep the driver's memory flat over thousands of trials."""

from ray_tune_memguard.callbacks.rss_reporter import RssReporter
from ray_tune_memguard.callbacks.trial_pruner import TrialPruner
from ray_tune_memguard.guard import MemGuard
from ray_tune_memguard.memory.series import read_rss_series

__version__ = "0.1.0"

__all__ = ["MemGuard", "RssReporter", "TrialPruner", "read_rss_series"]
