"""Ray Tune callbacks that keep the driver's memory flat over thousands of trials."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

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
from ray_tune_memguard.exporting import export_results
from ray_tune_memguard.memguard import MemGuard
from ray_tune_memguard.opening import install, open_experiment, uninstall
from ray_tune_memguard.reading import iter_results, read_results
from ray_tune_memguard.report.gate_records import read_gate
from ray_tune_memguard.report.head_records import read_head_node
from ray_tune_memguard.report.object_records import read_object_store
from ray_tune_memguard.report.picture import plot_rss_series
from ray_tune_memguard.report.series import read_rss_series
from ray_tune_memguard.report.trial_memory import read_trial_memory

if TYPE_CHECKING:
    from ray_tune_memguard.callbacks.memray_profiler import MemrayProfiler
    from ray_tune_memguard.diagnostics.deaths.reading import read_deaths
    from ray_tune_memguard.diagnostics.diagnosis import read_diagnosis
    from ray_tune_memguard.diagnostics.growth import read_growth
    from ray_tune_memguard.keeping.explanations import explain
    from ray_tune_memguard.keeping.keeper import Keeper
    from ray_tune_memguard.keeping.kept import Kept, KeptLostError
    from ray_tune_memguard.report.profile_records import read_profiles

__version__ = "0.1.0"

__all__ = [
    "HeadNodeReporter",
    "Keeper",
    "Kept",
    "KeptLostError",
    "LaunchGate",
    "MemGuard",
    "MemrayProfiler",
    "MetricsExporter",
    "ObjectGrowthTracker",
    "ObjectStoreReporter",
    "OomSurvival",
    "ResultHistories",
    "RssReporter",
    "TrialDeathReporter",
    "TrialMemoryReporter",
    "TrialPruner",
    "explain",
    "export_results",
    "install",
    "iter_results",
    "open_experiment",
    "plot_rss_series",
    "read_deaths",
    "read_diagnosis",
    "read_gate",
    "read_growth",
    "read_head_node",
    "read_object_store",
    "read_profiles",
    "read_results",
    "read_rss_series",
    "read_trial_memory",
    "uninstall",
]

# All code that opens or resumes an experiment then uses its trial store.
install()


#: Imported when they are used.
_LAZY = {
    "Keeper": "keeping.keeper",
    "Kept": "keeping.kept",
    "KeptLostError": "keeping.kept",
    "MemrayProfiler": "callbacks.memray_profiler",
    "explain": "keeping.explanations",
    "read_deaths": "diagnostics.deaths.reading",
    "read_diagnosis": "diagnostics.diagnosis",
    "read_growth": "diagnostics.growth",
    "read_profiles": "report.profile_records",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
