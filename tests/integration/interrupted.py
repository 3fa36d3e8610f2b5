"""Sweeps whose driver gets a signal; run in a process of its own by ``test_endings.py``."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import ray
from ray import tune

from ray_tune_memguard import MemGuard
from tests.integration import equality, sweeps
from tests.integration.equality import Case


class Interrupts(tune.Callback):
    """Sends a signal to its own process when the third trial is complete."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.completed = 0

    def on_trial_complete(self, **_: Any) -> None:
        self.completed += 1
        if self.completed == 3:
            os.kill(os.getpid(), self.number)

    def __reduce__(self) -> Any:
        return tune.Callback, ()


def main(address: str, folder: Path) -> None:
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    left = {}
    for name in ("SIGINT", "SIGUSR1"):
        for number, guards in enumerate(([], [MemGuard()])):
            callbacks = [Interrupts(getattr(signal, name))]
            case = Case(
                sweeps.three_reports, run_config={"callbacks": callbacks}, samples=5, concurrent=1
            )
            storage = folder / name / f"results{number}"
            grid = equality.run(case, storage, guards)
            left[f"{name} {'guarded' if guards else 'plain'}"] = {
                "guarded": equality.was_guarded(grid),
                "ended": equality.by_trial(grid),
                **equality.what_restore_gives(storage / "sweep", case.trainable),
            }
    print(json.dumps(left, default=str))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
