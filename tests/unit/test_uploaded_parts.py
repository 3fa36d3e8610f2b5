"""An experiment checkpoint that is uploaded in parts is read back whole, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

from ray_tune_memguard.adapter import uploaded_parts
from ray_tune_memguard.adapter.installation import new_summary_index
from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.restore.locate import StateFile, locate
from ray_tune_memguard.adapter.restore.parts import uploaded_parts as newest_parts
from ray_tune_memguard.adapter.restore.rebuild import verify_or_rebuild
from ray_tune_memguard.adapter.run import part_uploads
from ray_tune_memguard.adapter.run.checkpoint import with_pointer
from ray_tune_memguard.adapter.run.last_checkpoint import LastCheckpoint
from ray_tune_memguard.adapter.run.part_uploads import PartUploads
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.state_file import HEAD, ExperimentStateFile
from ray_tune_memguard.store.state_reader import StateReader
from ray_tune_memguard.store.trial_store import TrialStore

RUN = "2026-11-22_10-00-00"
NAME = f"experiment_state-{RUN}.json"


def record(trial_id: str, status: str) -> str:
    state = {"trial_id": trial_id, "status": status}
    metadata: dict[str, Any] = {"error_filename": None, "last_result_time": 1.0}
    metadata |= {"last_result": {"loss": 0.5}, "metric_analysis": {}}
    return json.dumps([json.dumps(state), json.dumps(metadata)])


REST = record("unfinished", "PENDING") + '], "runner_data": {}, "stats": {}}'


class Uploading:
    """A run on a storage that is not a local disk, as Arrow sees it."""

    def __init__(self, path: Path) -> None:
        self.root = path / "storage"
        (self.root / "sweep").mkdir(parents=True)
        self.filesystem = pyarrow.fs.SubTreeFileSystem(str(self.root), pyarrow.fs.LocalFileSystem())
        self.store = TrialStore.create(path / "local", "trials")
        self.state_file = ExperimentStateFile(path / "local" / NAME, path / "local" / "work")
        self.last = LastCheckpoint()
        self.parts = PartUploads(
            self.filesystem,
            "sweep",
            RUN,
            self.store,
            self.state_file,
            self.last,
            path / "local",
        )
        self.number = self.trials = 0

    def checkpoint(self, trials: int) -> None:
        """Finish some trials and write a checkpoint."""
        self.state_file.add(
            record(f"finished {self.trials + one}", "TERMINATED").encode() for one in range(trials)
        )
        self.trials += trials
        self.number += 1
        summaries = new_summary_index().dump()
        Snapshot(HEAD + REST, [0], self.number, summaries, {"searcher": b"%d" % self.number}).save(
            self.store
        )
        tail = with_pointer(REST, self.store.path, number=self.number)
        self.state_file.publish(tail)
        self.last.number, self.last.end = self.number, self.state_file.mark()

    def copy(self, source: str, target: str) -> None:
        (self.root / target).write_bytes(Path(source).read_bytes())

    def upload(self, whole: bool = False) -> bool:
        """Upload the last checkpoint; returns whether it was copied whole."""
        upload = self.parts.begin(whole)
        if upload is not None:
            self.parts.carry_out(upload, self.copy)
        else:
            self.copy(str(self.state_file.path), f"sweep/{NAME}")
            self.parts.whole_was_uploaded(self.parts.written_end)
        return upload is None

    def read(self) -> tuple[list[str], Snapshot] | None:
        """The names of all trials in the storage's parts; None if the whole file is newer."""
        experiment = Experiment(self.filesystem, "sweep")
        state_file = StateFile.newest_of(experiment)
        assert state_file is not None
        parts = newest_parts(experiment, state_file)
        if parts is None:
            return None
        reader = StateReader(parts.read_whole(experiment, state_file))
        names = [json.loads(found[0])["trial_id"] for found, _ in reader.records()]
        assert reader.rest().endswith("}")
        return names, parts.snapshot

    def expected(self) -> list[str]:
        return [f"finished {number}" for number in range(self.trials)] + ["unfinished"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Uploading:
    monkeypatch.setattr(part_uploads, "MAX_WHOLE_BYTES", 700)
    return Uploading(tmp_path)


def files(run: Uploading) -> list[str]:
    return sorted(path.name for path in (run.root / "sweep" / ".memguard").rglob("*.*"))


def test_a_small_file_is_uploaded_whole(run: Uploading) -> None:
    for _ in range(3):
        run.checkpoint(1)
        assert run.upload()
    assert files(run) == []
    assert run.read() is None


@pytest.mark.parametrize("steps", [[5, 3, 4], [5, 0, 2], [5, 1], [0, 9, 1], [5, 3, 0, 0, 7]])
def test_parts_make_up_the_last_checkpoint(run: Uploading, steps: list[int]) -> None:
    for trials in steps:
        run.checkpoint(trials)
        run.upload()
    found = run.read()
    assert found is not None
    names, snapshot = found
    assert names == run.expected()
    assert snapshot.files == {"searcher": b"%d" % len(steps)}


def test_a_restore_elsewhere_finds_all_trials(run: Uploading) -> None:
    """The driver's machine is lost, and its trial store with it."""
    for trials in (5, 3, 4):
        run.checkpoint(trials)
        run.upload()
    run.store.close()
    run.store.path.unlink()
    found = verify_or_rebuild(locate(Experiment(run.filesystem, "sweep")))
    assert found is not None
    ids = [row.trial_id for row in found.store.rows(0, 100)]
    assert ids == run.expected()[:-1]
    [unfinished] = json.loads(found.snapshot.state)["trial_data"]
    assert json.loads(unfinished[0])["trial_id"] == "unfinished"
    assert found.snapshot.files == {"searcher": b"3"}
    assert found.snapshot.creation_count == 3
    found.close()


def test_what_is_uploaded_does_not_grow_with_the_trials(run: Uploading) -> None:
    sizes = []
    run.checkpoint(10)
    assert run.upload()
    for _ in range(20):
        before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*.*")}
        run.checkpoint(10)
        assert not run.upload()
        sizes.append(
            sum(
                path.stat().st_size
                for path in run.root.rglob("*.*")
                if path.is_file() and before.get(path) != path.stat().st_mtime_ns
            )
        )
    assert max(sizes) < 1.2 * min(sizes)


def test_the_whole_file_replaces_the_parts(run: Uploading) -> None:
    for _ in range(3):
        run.checkpoint(5)
        run.upload()
    assert run.parts.are_newer
    assert run.upload(whole=True)
    assert files(run) == []
    assert not run.parts.are_newer
    assert run.read() is None
    # And the run goes on.
    run.checkpoint(5)
    assert not run.upload()
    found = run.read()
    assert found is not None
    assert found[0] == run.expected()


def test_a_failed_upload_is_repeated(run: Uploading, monkeypatch: pytest.MonkeyPatch) -> None:
    run.checkpoint(5)
    run.upload()
    run.checkpoint(2)
    run.upload()
    before = run.read()
    for fails_at in ("zst", "json"):

        def fail(source: str, target: str, fails_at: str = fails_at) -> None:
            if target.endswith(fails_at):
                raise OSError("the storage is not there")
            Uploading.copy(run, source, target)

        run.checkpoint(3)
        with monkeypatch.context() as patch:
            patch.setattr(run, "copy", fail)
            with pytest.raises(OSError, match="not there"):
                run.upload()
        assert before is not None
        if fails_at == "zst":
            assert run.read() == before
    run.upload()
    found = run.read()
    assert found is not None
    assert found[0] == run.expected()


def test_a_torn_manifest_leaves_the_one_before(run: Uploading) -> None:
    for _ in range(3):
        run.checkpoint(5)
        run.upload()
    newest = run.root / "sweep" / uploaded_parts.PARTS_DIRECTORY
    # The whole file came first.
    torn = newest / uploaded_parts.manifest_name(RUN, run.number - 2)
    torn.write_bytes(torn.read_bytes()[:-10])
    found = run.read()
    assert found is not None
    assert found[0] == [*run.expected()[: run.trials - 5], "unfinished"]


def test_uploads_that_fail_leave_the_last_one_that_did_not(
    run: Uploading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each leaves a segment with more records than the manifest knows, and half of a manifest."""

    def tear(source: str, target: str) -> None:
        Uploading.copy(run, source, target)
        if target.endswith("json"):
            path = run.root / target
            path.write_bytes(path.read_bytes()[:-10])
            raise OSError("the storage is not there")

    for _ in range(3):
        run.checkpoint(5)
        run.upload()
    before = run.read()
    assert before is not None
    with monkeypatch.context() as patch:
        patch.setattr(run, "copy", tear)
        for _ in range(3):
            run.checkpoint(5)
            with pytest.raises(OSError, match="not there"):
                run.upload()
            assert run.read() == before
    run.upload()
    found = run.read()
    assert found is not None
    assert found[0] == run.expected()


def test_a_manifest_that_is_older_than_its_last_segment(
    run: Uploading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload fails once it is complete, and the next one before its manifest."""
    for _ in range(2):
        run.checkpoint(5)
        run.upload()
    for fails_after in ("json", "zst"):

        def fail(source: str, target: str, fails_after: str = fails_after) -> None:
            Uploading.copy(run, source, target)
            if target.endswith(fails_after):
                raise OSError("the storage is not there")

        run.checkpoint(5)
        with monkeypatch.context() as patch:
            patch.setattr(run, "copy", fail)
            with pytest.raises(OSError, match="not there"):
                run.upload()
    found = run.read()
    assert found is not None
    assert found[0] == [*run.expected()[: run.trials - 5], "unfinished"]


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: b"", lambda raw: raw[::-1]])
def test_a_damaged_segment_is_an_error(run: Uploading, damage: Any) -> None:
    for _ in range(3):
        run.checkpoint(5)
        run.upload()
    [first, *_] = sorted((run.root / "sweep" / uploaded_parts.PARTS_DIRECTORY).glob("*.zst"))
    first.write_bytes(damage(first.read_bytes()))
    with pytest.raises(ValueError, match=r"damaged|incomplete"):
        run.read()


def test_a_checkpoint_that_was_not_written_completely_waits(run: Uploading) -> None:
    run.checkpoint(5)
    run.upload()
    run.last.end = None
    assert run.parts.must_wait
    assert run.parts.begin(whole=False) is None


def test_ray_that_went_on_alone_counts(run: Uploading) -> None:
    for _ in range(2):
        run.checkpoint(5)
        run.upload()
    (run.root / "sweep" / NAME).write_text(HEAD + REST)
    assert run.read() is None
