"""How many more files the driver has open with MemGuard than with Ray alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
from ray import tune

from ray_tune_memguard import MemGuard
from tests.integration import sweeps

#: Said in docs/changes.md.
MAX_MORE = 4


class OpenFiles(tune.Callback):
    """Looks at each event which regular files are open.

    Those of running trials are left out, and the state files: with and without MemGuard two are
    open while a thread uploads one, which a look sees or does not see.
    """

    def __init__(self) -> None:
        self.most: set[str] = set()

    def look(self, **_: Any) -> None:
        paths = {Path(file.path) for file in psutil.Process().open_files()}
        found = {
            str(path)
            for path in paths
            if not any(path.parent.glob("params.json")) and "experiment_state" not in path.name
        }
        self.most = max(self.most, found, key=len)

    on_step_begin = on_step_end = on_trial_start = on_trial_result = on_trial_complete = look


@pytest.mark.slow
@pytest.mark.latest_only
def test_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0.1")
    most = []
    for guards in ([], [MemGuard()]):
        look = OpenFiles()
        sweeps.fit(sweeps.one_report, tmp_path / str(len(most)), [*guards, look], samples=16)
        most.append(look.most)
    alone, guarded = most
    assert any(path.endswith(".sqlite") for path in guarded)
    assert len(guarded) <= len(alone) + MAX_MORE, guarded - alone
