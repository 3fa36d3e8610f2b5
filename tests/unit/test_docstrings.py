"""The docstrings of what a user calls are complete, and their examples run."""

from __future__ import annotations

import doctest
import inspect
import json
import logging
from pathlib import Path

import pytest

import ray_tune_memguard
from ray_tune_memguard.adapter.handle import RunHandle
from ray_tune_memguard.cluster.trial_memory import TrialMemories
from ray_tune_memguard.diagnostics.deaths.record import Death, MemoryUser
from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
from ray_tune_memguard.diagnostics.findings import GrowingSite
from ray_tune_memguard.diagnostics.growth import GrowthRow
from ray_tune_memguard.report.gate_records import GateRecord
from ray_tune_memguard.report.head_records import HeadRecord
from ray_tune_memguard.report.object_records import StoreRecord
from ray_tune_memguard.report.profile_records import TrialProfile
from ray_tune_memguard.report.records import RecordFile
from ray_tune_memguard.report.series import RssPoint
from ray_tune_memguard.report.series_file import SeriesFile
from ray_tune_memguard.report.trial_memory import KIND, TrialMemory
from ray_tune_memguard.system.node_memory import MemoryLimits, MonitorSettings
from ray_tune_memguard.testing import LeakTest

PUBLIC = {name: getattr(ray_tune_memguard, name) for name in ray_tune_memguard.__all__}
DOCUMENTED = {
    **PUBLIC,
    "Diagnosis": Diagnosis,
    "LeakTest": LeakTest,
    "MemoryLimits": MemoryLimits,
    "MonitorSettings": MonitorSettings,
    "RunHandle": RunHandle,
    "TrialMemories": TrialMemories,
}
RUN = "2026-11-22_10-00-00"
MIB = 2**20


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """What two samples of a run leave: series, a diagnosis, results, and a state file."""
    path = tmp_path / "experiment"
    reports = path / ".memguard"
    reports.mkdir(parents=True)
    SeriesFile(reports / f"rss-{RUN}.csv", RssPoint).add(
        RssPoint(time, trials, trials, 0, rss)
        for time, trials, rss in ((0.0, 500, 230 * MIB), (60.0, 1000, 231 * MIB))
    )
    SeriesFile(reports / f"growth-{RUN}.csv", GrowthRow).add(
        GrowthRow(time, trials, trials, "holder", "MyCallback.history", 2048.0 * trials)
        for time, trials in ((0.0, 500), (60.0, 1000))
    )
    grows = GrowingSite("MyCallback.history", "python", 2048.0, 1.0, bytes=2048000.0)
    Diagnosis(1000, 1000, holders=[grows]).save(reports / f"diagnosis-{RUN}.json")
    RecordFile(reports / f"deaths-{RUN}.jsonl").add(
        Death(
            0.0,
            "00001",
            "train_00001",
            "ray_memory_monitor",
            "certain",
            size_bytes=110 * MIB,
            culprit=MemoryUser(7, 890 * MIB, "train_00000", "00000"),
        )
    )
    memory = RecordFile(reports / f"{KIND}-{RUN}.jsonl")
    for number, peak in enumerate((300 * MIB, 900 * MIB)):
        sizes, config = (peak, peak, peak, peak, 0.0), {"layers": 2 + 6 * number}
        flags = {"is_exact": True, "is_reused": False}
        counts = {"children": 0, "starts": 1, "pid": 1}
        times = {"started": 0.0, "ended": 1.0}
        memory.add(
            TrialMemory(
                str(number),
                "completed",
                *sizes,
                **flags,
                **counts,
                **times,
                node="n",
                config=config,
            )
        )
    gate = RecordFile(reports / f"gate-{RUN}.jsonl")
    gate.add(GateRecord(0.0, "pause", "node", "2.1 GiB is used", running=2))
    gate.add(GateRecord(60.0, "resume", "node", "no trial has waited", running=1))
    head = RecordFile(reports / f"head-{RUN}.jsonl")
    for time, trials, rss in ((0.0, 500, 48 * MIB), (60.0, 1000, 64 * MIB)):
        head.add(HeadRecord(time, trials, {"gcs_server": (rss, rss // 2)}))
    store = RecordFile(reports / f"objects-{RUN}.jsonl")
    for time, trials in ((0.0, 500), (60.0, 1000)):
        store.add(StoreRecord(time, trials, 80 * MIB, trials * 40_000, 0))
    RecordFile(reports / f"profiles-{RUN}.jsonl").add(
        TrialProfile("00001", "completed", 0.0, peak_bytes=83 * MIB)
    )
    state = '{"trial_data": [], "runner_data": {}, "stats": {}}'
    (path / f"experiment_state-{RUN}.json").write_text(state)
    (path / "trial_1").mkdir()
    lines = (json.dumps({"loss": loss, "trial_id": "1"}) + "\n" for loss in (0.5, 0.25))
    (path / "trial_1" / "result.json").write_text("".join(lines))
    return path


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_examples_run(
    name: str, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("ray_tune_memguard"), "disabled", True)
    found = doctest.DocTestFinder().find(
        DOCUMENTED[name], name, globs={"experiment": experiment, "__name__": "__main__"}
    )
    runner = doctest.DocTestRunner()
    for example in found:
        runner.run(example)
    results = runner.summarize(verbose=False)
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize("name", PUBLIC)
def test_the_arguments_are_described(name: str) -> None:
    text = inspect.getdoc(PUBLIC[name]) or ""
    for parameter in inspect.signature(PUBLIC[name]).parameters:
        assert f"    {parameter}: " in text.partition("Args:\n")[2]
