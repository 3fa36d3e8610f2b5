"""The same sweep twice over Ray Client; run in a process of its own by ``test_ray_client.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import ray

from ray_tune_memguard import MemGuard
from tests.integration import equality, sweeps
from tests.integration.equality import Both, Case


def main(address: str, folder: Path) -> None:
    ray.init(address, log_to_driver=False, logging_level="ERROR")
    case = Case(sweeps.saves_then_fails_sometimes, space=SPACE, samples=1, concurrent=1)
    plain, guarded = (
        equality.run(case, folder / f"results{number}", guards)
        for number, guards in enumerate(([], [MemGuard()]))
    )
    # The driver is a process of the cluster, so its grid comes as a pickle: as plain Ray.
    assert len(list(folder.glob("results1/sweep/.memguard/trials-*.sqlite"))) == 1
    assert len(list(folder.glob("results0/sweep/.memguard/*"))) == 0
    assert len(plain) == 3
    equality.assert_equal(Both(plain, guarded), leave_out=("nothing_stayed_in_memory",))


SPACE = {**sweeps.SPACE, "nested": {"c": sweeps.tune.grid_search([0, 1, 2])}}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
