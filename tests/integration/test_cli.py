"""The command line reads an experiment of a real run, while it goes on and afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ray import tune

from ray_tune_memguard import MemGuard
from ray_tune_memguard.cli.main import main

pytestmark = pytest.mark.latest_only
TRIALS = 4


def run_json(*arguments: object, code: int = 0) -> Any:
    done = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


class Looks(tune.Callback):
    """Runs commands in another process when all trials exist."""

    def __init__(self, experiment: Path) -> None:
        self.experiment = experiment
        self.found: dict[str, Any] = {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        if len(trials) < TRIALS or self.found:
            return
        for command in (["top", "--count", "1"], ["verify"]):
            done = subprocess.run(
                [sys.executable, "-m", "ray_tune_memguard", *command, str(self.experiment)],
                capture_output=True,
                text=True,
            )
            self.found[command[0]] = done.returncode, done.stdout + done.stderr


def train(config: dict[str, int]) -> dict[str, int]:
    return {"loss": config["x"]}


@pytest.mark.slow
def test_commands_on_a_run(storage: Path) -> None:
    experiment = storage / "sweep"
    looks = Looks(experiment)
    tuner = tune.Tuner(
        train,
        param_space={"x": tune.grid_search(list(range(TRIALS)))},
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(storage),
            callbacks=[MemGuard(), looks],
            verbose=0,
        ),
    )
    tuner.fit()
    code, text = looks.found["top"]
    assert code == 0, text
    assert "Its last run goes on" in text
    code, text = looks.found["verify"]
    assert code == 1, text
    assert "is not over" in text
    shown = run_json("show", experiment)
    assert shown["run"]["state"] == "finished"
    assert shown["rss"]["series"][-1]["trials"] == TRIALS
    assert len(shown["trials"]) == TRIALS
    assert run_json("deaths", experiment) == []
    found = run_json("verify", experiment)
    assert found["source"] == "store"
    assert found["staying"] == {"TERMINATED": TRIALS}
    assert found["returning"] == {}
    assert not run_json("import", experiment)["is_new"]
    written = run_json("export", experiment, "--to", "json", "-o", storage / "all.json")
    lines = Path(written["path"]).read_text().splitlines()
    assert sorted(json.loads(line)["loss"] for line in lines) == list(range(TRIALS))
