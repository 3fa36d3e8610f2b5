"""What still grows with fresh actors under MemGuard, and whether Python holds it.

``python -m benchmarks.native [TRIALS]`` runs one guarded sweep of real trials, a fresh actor each,
with at most four trials waiting, so that no queue drains while it is measured. Every ten trials it
samples, after a trim: RSS; what the C allocator has in use and in slack (``mallinfo2``); and the
number of blocks that Python's own allocator has in use. It prints the slope of each over the last
two thirds. Where the allocator's bytes grow and Python's blocks do not, the growth is native state.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from typing import Any

import ray
from ray import tune

from benchmarks.machine import describe_machine, machine_line
from benchmarks.problem import METRIC, MODE, make_trainable, search_space
from ray_tune_memguard import MemGuard
from ray_tune_memguard.report.line import fit_line
from ray_tune_memguard.system import allocator
from ray_tune_memguard.system.process import rss_bytes

SAMPLES: list[tuple[int, int, int, int, int]] = []


class Sampler(tune.Callback):
    """Samples every ten finished trials."""

    def __init__(self) -> None:
        self.finished = 0

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.finished += 1

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        if self.finished >= 10 * (len(SAMPLES) + 1):
            gc.collect()
            allocator.trim()
            counters = allocator.counters()
            in_use = counters["uordblks"] + counters["hblkhd"]
            slack = counters["fordblks"]
            SAMPLES.append((self.finished, rss_bytes(), in_use, slack, sys.getallocatedblocks()))
            print(f"{self.finished} trials, RSS {SAMPLES[-1][1] / 2**20:.1f} MiB", flush=True)


def main() -> None:
    """Run the sweep and print the slopes."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    print("native: what stays of fresh actors with MemGuard")
    print(machine_line(describe_machine()), flush=True)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "4"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as storage:
        tune.Tuner(
            make_trainable(1, 0),
            param_space=search_space(),
            tune_config=tune.TuneConfig(metric=METRIC, mode=MODE, num_samples=trials),
            run_config=tune.RunConfig(
                storage_path=storage, name="native", verbose=0, callbacks=[MemGuard(), Sampler()]
            ),
        ).fit()
    steady = SAMPLES[len(SAMPLES) // 3 :]
    print(f"\nRay {ray.__version__}, slopes over trials {steady[0][0]} to {steady[-1][0]}:")
    for column, name in (
        (1, "RSS, bytes per trial"),
        (2, "C allocator in use, bytes per trial"),
        (3, "C allocator's slack, bytes per trial"),
        (4, "blocks in use in Python's allocator, per trial"),
    ):
        fitted = fit_line([sample[0] for sample in steady], [sample[column] for sample in steady])
        slope = None if fitted is None else fitted.slope
        print(f"{name:<48} {slope or 0:>10,.0f}")
    ray.shutdown()


if __name__ == "__main__":
    main()
