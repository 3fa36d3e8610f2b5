"""Experiments as runs leave them, for tests of what reads them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ray_tune_memguard.adapter.run.checkpoint import with_pointer
from ray_tune_memguard.diagnostics.deaths.record import Death, MemoryUser
from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
from ray_tune_memguard.diagnostics.findings import Quantity
from ray_tune_memguard.diagnostics.growth import GrowthRow
from ray_tune_memguard.report.driver_record import BEGIN, END, DriverRecord
from ray_tune_memguard.report.gate_records import GateRecord
from ray_tune_memguard.report.head_records import HeadRecord
from ray_tune_memguard.report.object_records import StoreRecord
from ray_tune_memguard.report.records import RecordFile
from ray_tune_memguard.report.series import RssPoint, RssSeries
from ray_tune_memguard.report.series_file import SeriesFile
from ray_tune_memguard.report.trial_memory import TrialMemory
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.trial_store import TrialStore
from tests.unit.fakes import NO_SUMMARIES, fake_row

RUN, LATER_RUN = "2026-11-22_10-00-00", "2026-11-23_10-00-00"
#: When the later run begins.
LATER = 1000.0 + 24 * 3600
MIB = 2**20
STATE = '{"trial_data": [], "runner_data": {}, "stats": {}}'
_REPORTED = {"last_result_time": 0.0}
# No process has this number.
_NO_PROCESS = 2**22 + 1


def experiment_of_ray(path: Path) -> Path:
    """An experiment that ran without this package, with one trial."""
    trial = path / "trial_1"
    trial.mkdir(parents=True)
    (trial / "result.json").write_text('{"loss": 0.5, "trial_id": "1"}\n')
    (path / f"experiment_state-{RUN}.json").write_text(STATE)
    return path


def measured(path: Path, ended: bool = True, is_alive: bool = False) -> Path:
    """An experiment with everything that is measured.

    Args:
        path: its directory.
        ended: whether its run has ended by itself.
        is_alive: whether its driver is still there.
    """
    own = experiment_of_ray(path) / ".memguard"
    series = RssSeries(own / f"rss-{RUN}.csv")
    growth = SeriesFile(own / f"growth-{RUN}.csv", GrowthRow)
    for trials in range(0, 401, 20):
        rss = 200 * MIB + trials * 2048
        series.add(RssPoint(1000.0 + trials, trials, trials - 1, 1, rss))
        growth.add(
            [
                GrowthRow(1000.0 + trials, trials, trials, "part", "rss", rss),
                GrowthRow(1000.0 + trials, trials, trials, "holder", "Mine.history", trials * 1024),
            ]
        )
    memory = RecordFile(own / f"trial-memory-{RUN}.jsonl")
    for number in range(30):
        memory.add(trial_memory(number))
    RecordFile(own / f"deaths-{RUN}.jsonl").add(death())
    RecordFile(own / f"gate-{RUN}.jsonl").add(
        GateRecord(1200.0, "pause", "n", "93 % of its memory is in use", 93, 100, running=4)
    )
    head = RecordFile(own / f"head-{RUN}.jsonl")
    for trials in range(0, 401, 100):
        own_bytes = 50 * MIB + trials * 16_384
        head.add(HeadRecord(1000.0 + trials, trials, {"gcs_server": (90 * MIB, own_bytes)}))
    store = RecordFile(own / f"objects-{RUN}.jsonl")
    for trials in range(0, 401, 100):
        leak = "78.1 MiB stay in it" if trials == 400 else ""
        store.add(
            StoreRecord(1000.0 + trials, trials, 2**30, trials * 150_000, trials * 54_800, leak)
        )
    drivers = RecordFile(own / f"driver-{RUN}.jsonl")
    begin = DriverRecord.now(BEGIN, 0.0)
    drivers.add(begin if is_alive or ended else replace(begin, pid=_NO_PROCESS))
    if ended:
        drivers.add(DriverRecord.now(END, 0.0))
        parts = [Quantity("rss", 210 * MIB)]
        Diagnosis(400, 400, parts=parts, span=300).save(own / f"diagnosis-{RUN}.json")
    return path


def resume(path: Path) -> Path:
    """Let a run that goes on continue an experiment with everything that is measured.

    Its driver is smaller and grows twice as fast; another process of Ray's is on the head node. It
    continues the last trial, a day later.
    """
    own = path / ".memguard"
    series = RssSeries(own / f"rss-{LATER_RUN}.csv")
    growth = SeriesFile(own / f"growth-{LATER_RUN}.csv", GrowthRow)
    head = RecordFile(own / f"head-{LATER_RUN}.jsonl")
    store = RecordFile(own / f"objects-{LATER_RUN}.jsonl")
    for trials in range(0, 101, 20):
        time, all_trials = LATER + trials, 400 + trials
        rss = 100 * MIB + trials * 4096
        series.add(RssPoint(time, all_trials, all_trials - 1, 1, rss))
        growth.add([GrowthRow(time, all_trials, trials, "holder", "Later.list", trials * 2048)])
        head.add(HeadRecord(time, all_trials, {"raylet": (90 * MIB, 50 * MIB + trials * 8192)}))
        store.add(StoreRecord(time, all_trials, 2**30, trials * 102_400, 0, ""))
    memory = RecordFile(own / f"trial-memory-{LATER_RUN}.jsonl")
    memory.add(replace(trial_memory(29), started=LATER, ended=LATER + 60))
    RecordFile(own / f"driver-{LATER_RUN}.jsonl").add(DriverRecord.now(BEGIN, 0.0))
    return path


def stored(path: Path, finish: bool = True) -> TrialStore:
    """An experiment whose trials are spilled: two have ended, one has failed, one was running.

    Args:
        path: its directory.
        finish: whether its run is over.
    """
    path.mkdir(parents=True)
    store = TrialStore.create(path / ".memguard", f"trials-{RUN}")
    store.set_metadata(experiment=str(path), staging=str(path))
    running = [json.dumps(one) for one in ({"trial_id": "d", "status": "RUNNING"}, _REPORTED)]
    state = json.dumps({"trial_data": [running], "runner_data": {}})
    Snapshot(state=state, positions=[3], creation_count=4, summaries=NO_SUMMARIES, files=None).save(
        store
    )
    with store.transaction():
        for position, status in enumerate(("TERMINATED", "TERMINATED", "ERROR")):
            name = "abc"[position]
            record = [json.dumps({"trial_id": name, "status": status}), json.dumps(_REPORTED)]
            row = fake_row(name, status, json.dumps(record).encode(), creation_index=position)
            store.put(position, row)
    (path / f"experiment_state-{RUN}.json").write_text(with_pointer(STATE, store.path, path))
    if finish:
        store.finalize()
        store.close()
    return store


def trial_memory(number: int) -> TrialMemory:
    return TrialMemory(
        trial_id=f"t{number:05d}",
        end="completed",
        peak_rss_bytes=(100 + number) * MIB,
        peak_anonymous_bytes=(200 - number) * MIB,
        last_rss_bytes=0,
        last_anonymous_bytes=0,
        growth_bytes_per_s=float("nan"),
        is_exact=True,
        children=0,
        is_reused=False,
        starts=1,
        node="n",
        pid=1,
        started=1000.0,
        ended=1200.0,
        config={"layers": number},
    )


def death() -> Death:
    return Death(
        time=1300.0,
        trial_id="t00029",
        trial_name="train_t00029",
        cause="kernel_oom",
        certainty="certain",
        summary="Trial train_t00029 was killed by the kernel.",
        evidence=("the kernel's log",),
        is_retried=True,
        size_bytes=500 * MIB,
        culprit=MemoryUser(7, 900 * MIB, "train_t00001", "t00001"),
        advice="Run fewer trials at once.",
        error="ActorDiedError: …",
    )
