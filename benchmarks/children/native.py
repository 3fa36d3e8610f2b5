"""One guarded sweep of real trials, a fresh actor each, whose memory is read after a trim.

At most four trials wait, so that no queue drains while it is measured.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

from ray import tune

from benchmarks import child
from ray_tune_memguard import MemGuard
from ray_tune_memguard.system import allocator
from ray_tune_memguard.system.process import rss_bytes


class Sampler(tune.Callback):
    """Samples every ten finished trials."""

    def __init__(self) -> None:
        self.finished = 0
        self.samples: list[dict[str, int]] = []

    def on_trial_complete(self, **info: Any) -> None:
        """Count one."""
        self.finished += 1

    def on_step_end(self, **info: Any) -> None:
        """Take a sample if one is due."""
        if self.finished < 10 * (len(self.samples) + 1):
            return
        gc.collect()
        allocator.trim()
        counters = allocator.counters()
        self.samples.append(
            {
                "finished": self.finished,
                "rss": rss_bytes(),
                "in_use": counters["uordblks"] + counters["hblkhd"],
                "slack": counters["fordblks"],
                "blocks": sys.getallocatedblocks(),
            }
        )


def run_sweep(trials: int, directory: str) -> dict[str, Any]:
    """Run the sweep and return the samples."""
    child.set_environment(loggers=True)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "4"
    child.start_ray(Path(directory))
    sampler = Sampler()
    child.make_tuner(
        trials, [MemGuard(), sampler], storage_path=str(Path(directory) / "results")
    ).fit()
    return {"memory": sampler.samples}


if __name__ == "__main__":
    child.answer(run_sweep)
