"""The console says what it says without MemGuard, in the middle of a sweep and at its end."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.experimental import output

from ray_tune_memguard import MemGuard
from ray_tune_memguard.adapter.analysis import last_table
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.report import long_table
from tests.integration import sweeps


def new_reporter(metric: str | None) -> Any:
    return output.TuneTerminalReporter(
        output.AirVerbosity.VERBOSE, num_samples=60, metric=metric, mode="max", config=sweeps.SPACE
    )


def old_reporter(metric: str | None, **options: Any) -> Any:
    reporter = tune.CLIReporter(**options)
    reporter.setup(start_time=1.0, total_samples=60, metric=metric, mode="max")
    return reporter


class Undisplayed(tune.JupyterNotebookReporter):
    """Makes the HTML; showing it would need IPython."""

    def display(self, string: str) -> None:
        pass


def notebook_reporter(metric: str | None) -> Any:
    reporter = Undisplayed()
    reporter.setup(start_time=1.0, total_samples=60, metric=metric, mode="max")
    return reporter


def without_time(text: str) -> str:
    text = re.sub(r"Current time:? ?[^\n]*", "", text)
    text = re.sub(r"<tr><td>(Current time:|Running for:|Memory:).*?</tr>", "", text)
    return re.sub(r"running for [^\n]*", "", text)


def texts(trials: Any, done: bool) -> dict[str, Any]:
    """What each of Ray's reporters makes of these trials."""
    made: dict[str, Any] = {}
    for metric in ("score", None, "info/loss"):
        made[f"new {metric}"] = new_reporter(metric)._get_heartbeat(
            trials, "resources", force_full_output=done
        )
        made[f"old {metric}"] = without_time(
            old_reporter(metric)._progress_str(trials, done, "resources")
        )
        made[f"notebook {metric}"] = without_time(
            notebook_reporter(metric)._progress_html(trials, done, "resources")
        )
    made["old sorted"] = without_time(
        old_reporter("score", sort_by_metric=True)._progress_str(trials, done)
    )
    made["old short"] = without_time(
        old_reporter("score", max_progress_rows=3, max_error_rows=1)._progress_str(trials, done)
    )
    with redirect_stdout(io.StringIO()) as out:
        new_reporter("score")._print_heartbeat(trials, "resources", force=done)
    made["printed"] = without_time(out.getvalue())
    made["errors"] = [str(trial) for trial in output._get_trials_with_error(trials)]
    for name in list(made):
        if name.startswith("new"):
            lines, table = made[name]
            made[name] = ([without_time(line) for line in lines], table)
    return made


class Compare(tune.Callback):
    """Reports on the spilled list and on a plain list of the same trials, every few steps."""

    compared = 0

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        if iteration % 47 == 0:
            self.compare(trials, done=False)

    def on_experiment_end(self, trials: Any, **_: Any) -> None:
        self.compare(trials, done=True)

    def compare(self, trials: Any, done: bool) -> None:
        assert isinstance(trials, SpilledTrials)
        spilled, plain = texts(trials, done), texts(list(trials), done)
        assert spilled == plain
        Compare.compared += 1


@pytest.mark.slow
@pytest.mark.parametrize("trainable", [sweeps.fails_sometimes, sweeps.fails_first_time])
def test_reports_on_spilled_trials_equal_those_on_all(
    storage: Path, trainable: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_table, "_MIN_ROWS", 2)
    monkeypatch.setattr(long_table, "_BLOCK_ROWS", 3)
    Compare.compared = 0
    grid = sweeps.fit(
        trainable,
        storage,
        [MemGuard(), Compare()],
        samples=40,
        space=sweeps.RARELY_FAILS,
        run_config={"failure_config": tune.FailureConfig(max_failures=1)},
    )
    assert len(grid) == 40
    assert Compare.compared >= 2
    # The states of its trials are of another run, so the reports read their records.
    Compare.compared = 0
    grid = tune.Tuner.restore(grid.experiment_path, trainable=trainable).fit()
    assert len(grid) == 40
    assert Compare.compared == 1


@pytest.mark.slow
@pytest.mark.parametrize("new_output", ["1", "0"])
def test_the_final_console_report(
    storage: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    new_output: str,
) -> None:
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", new_output)
    start = "Trial status:" if new_output == "1" else "== Status =="
    reports = []
    for guards in ([], [MemGuard(every_trials=None)]):
        grid = sweeps.fit(
            sweeps.fails_sometimes,
            storage,
            guards,
            samples=24,
            space=sweeps.RARELY_FAILS,
            run_config={"verbose": 1},
        )
        assert len(grid) == 24
        text = capsys.readouterr().out
        last = text[text.rindex(start) :]
        # Paths have the time in them; the table's columns for it differ from run to run.
        last = re.sub(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", "TIME", last)
        last = re.sub(r"session_TIME_\d+_\d+", "session", last)
        last = re.sub(r"\d+\.\d+(e-\d+)?", "NUMBER", without_time(last))
        reports.append(re.sub(r"[ ─-]+", " ", last))
    assert reports[1].splitlines() == reports[0].splitlines()
    assert "errored trials" in reports[1]
