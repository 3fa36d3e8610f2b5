"""Results are the same wherever they are stored, and after they were moved."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
import pytest
from ray import tune
from ray.tune.analysis import ExperimentAnalysis

from ray_tune_memguard import MemGuard, install, open_experiment, read_rss_series, uninstall
from ray_tune_memguard.adapter.run.part_uploads import PartUploads
from tests.integration import equality, sweeps
from tests.integration.equality import Both, Case
from tests.integration.local_s3 import filesystem_of


@pytest.fixture
def memory() -> pyarrow.fs.FileSystem:
    """A filesystem of fsspec. Actors do not share it, so it is for sweeps without checkpoints."""
    filesystem = fsspec.filesystem("memory", skip_instance_cache=True)
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[pyarrow.fs.FileSystem]:
    """An S3 of our own, on a free port of this machine."""
    server_module = pytest.importorskip("moto.server", reason="moto or flask is not installed")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield filesystem_of(f"{host}:{port}", "bucket")
    server.stop()


def stored(filesystem: pyarrow.fs.FileSystem, path: str) -> list[Any]:
    """The files below a path; of what has no time inside, with the size."""
    selector = pyarrow.fs.FileSelector(path, recursive=True)
    return sorted(
        equality.normal(info.path)
        for info in filesystem.get_file_info(selector)
        # Times are part of the names of these.
        if info.is_file and not info.base_name.startswith(("events.", "experiment_state"))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "trainable"), [("memory", sweeps.one_report), ("s3", sweeps.with_checkpoints)]
)
def test_a_storage_apart_from_the_drivers_staging(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str, trainable: Any
) -> None:
    monkeypatch.setenv("TUNE_MEMGUARD_EVERY_TRIALS", "1")
    filesystem = request.getfixturevalue(name)
    grids = []
    for number, guards in enumerate(([], [MemGuard()])):
        case = Case(trainable, run_config={"storage_filesystem": filesystem}, samples=3)
        grids.append(equality.run(case, Path(f"bucket/results{number}"), guards))
    both = Both(*grids)
    assert equality.was_guarded(both.guarded)
    equality.assert_equal(both, leave_out=("files",))
    plain, guarded = (stored(filesystem, grid.experiment_path) for grid in both)
    assert [path for path in guarded if "/.memguard/" not in path] == plain
    assert len(plain) > 9
    # MemGuard's own reports are uploaded with the rest.
    assert any("/.memguard/rss-" in path for path in guarded)
    # The store stays beside the staging directory.
    assert not [path for path in guarded if path.endswith(".sqlite")]


@pytest.mark.slow
def test_a_moved_experiment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """It opens, restores and resumes from where it was moved to."""
    case = Case(
        sweeps.saves_then_fails_sometimes,
        space={**sweeps.SPACE, "nested": {"c": tune.grid_search([0, 1, 2])}},
        samples=1,
        concurrent=1,
    )
    both = equality.run_both(case, tmp_path_factory)
    moved = []
    for grid in both:
        target = tmp_path_factory.mktemp("results") / "elsewhere"
        shutil.move(grid.experiment_path, target)
        moved.append(target)
    del grid, both
    plain, guarded = (equality.what_restore_gives(path, case.trainable) for path in moved)
    assert equality.differences(guarded, plain) == {}
    assert len(plain["resumed"]) == 3
    assert len(list((moved[1] / ".memguard").glob("trials-*.sqlite"))) == 1


def test_each_subdirectory_but_hidden_ones_is_a_trial(storage: Path) -> None:
    """Scripts that walk over an experiment's subdirectories find a trial's files in each."""
    grid = sweeps.fit(sweeps.one_report, storage, [MemGuard()], samples=3)
    experiment = Path(grid.experiment_path)
    assert list((experiment / ".memguard").glob("trials-*.sqlite"))
    folders = [Path(path) for path in glob.glob(f"{experiment}/*/")]
    assert len(folders) == 3
    assert all((folder / "params.json").is_file() for folder in folders)


@pytest.mark.slow
def test_an_experiment_of_an_earlier_version(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its files are in ``memguard``; it opens, restores and resumes all the same."""
    case = Case(
        sweeps.saves_then_fails_sometimes,
        space={**sweeps.SPACE, "nested": {"c": tune.grid_search([0, 1, 2])}},
        samples=1,
        concurrent=1,
    )
    both = equality.run_both(case, tmp_path_factory)
    plain_path, path = (Path(grid.experiment_path) for grid in both)
    del both
    (path / ".memguard").rename(path / "memguard")
    [state_file] = path.glob("experiment_state-*.json")
    text = state_file.read_text()
    assert "/.memguard/" in text
    state_file.write_text(text.replace("/.memguard/", "/memguard/"))
    rows = len(read_rss_series(path))
    assert rows > 0
    assert equality.was_guarded(open_experiment(str(path)))

    plain, guarded = (
        equality.what_restore_gives(place, case.trainable) for place in (plain_path, path)
    )
    assert equality.differences(guarded, plain) == {}
    assert len(plain["resumed"]) == 3
    # The resumed run wrote to the new place, and what it replaces is gone.
    assert len(list((path / ".memguard").glob("trials-*.sqlite"))) == 1
    assert not list((path / "memguard").glob("trials-*.sqlite"))
    assert len(read_rss_series(path)) > rows


class LosesTheMachine(tune.Callback):
    """Copies the storage in the middle of a run, as if the driver's machine were lost then."""

    def __init__(self, filesystem: pyarrow.fs.FileSystem, after: int) -> None:
        self.filesystem = filesystem
        self.after = after
        #: Ids of the trials that had finished at each upload of parts that has ended.
        self.uploaded: list[set[str]] = []
        self.safe: set[str] | None = None

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        begin, carry_out = PartUploads.begin, PartUploads.carry_out
        finished: list[set[str]] = []

        def begun(parts: Any, whole: bool) -> Any:
            finished.append({row.trial_id for row in parts._store.rows(0, 1000)})
            return begin(parts, whole)

        def carried_out(parts: Any, *upload: Any) -> None:
            ids = finished[-1]
            carry_out(parts, *upload)
            self.uploaded.append(ids)

        monkeypatch.setattr(PartUploads, "begin", begun)
        monkeypatch.setattr(PartUploads, "carry_out", carried_out)

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        if self.safe is None and self.uploaded and len(self.uploaded[-1]) >= self.after:
            self.safe = self.uploaded[-1]
            selector = pyarrow.fs.FileSelector("bucket/results", recursive=True)
            for info in self.filesystem.get_file_info(selector):
                if info.is_file:
                    target = info.path.replace("bucket/results", "bucket/lost", 1)
                    with self.filesystem.open_input_stream(info.path, compression=None) as source:
                        content = source.readall()
                    self.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
                    with self.filesystem.open_output_stream(target, compression=None) as copy:
                        copy.write(content)

    def __reduce__(self) -> Any:
        return tune.Callback, ()


@pytest.mark.latest_only
def test_a_lost_driver_machine(
    memory: pyarrow.fs.FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No trial is lost that had finished before the last upload; and what ends well is whole."""
    monkeypatch.setattr("ray_tune_memguard.adapter.run.part_uploads.MAX_WHOLE_BYTES", 0)
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    machine = LosesTheMachine(memory, after=6)
    machine.watch(monkeypatch)
    case = Case(
        sweeps.one_report,
        run_config={"storage_filesystem": memory, "callbacks": [machine]},
        samples=12,
    )
    grid = equality.run(case, Path("bucket/results"), [MemGuard()])
    # At the end Ray alone finds everything in one file.
    assert not [path for path in stored(memory, grid.experiment_path) if "/checkpoints/" in path]
    uninstall()
    whole = ExperimentAnalysis("bucket/results/sweep", storage_filesystem=memory)
    install()
    assert {t.trial_id: t.status for t in whole.trials} == {
        trial.trial_id: "TERMINATED" for trial in grid._experiment_analysis.trials
    }
    assert machine.safe is not None
    lost = "bucket/lost/sweep"
    opened = {
        trial.trial_id: trial
        for trial in ExperimentAnalysis(lost, storage_filesystem=memory).trials
        if trial.status == "TERMINATED"
    }
    assert opened.keys() >= machine.safe
    first = {trial.trial_id: trial.last_result for trial in whole.trials}
    for trial_id in machine.safe:
        assert sweeps.stable(opened[trial_id].last_result) == sweeps.stable(first[trial_id])
    ran: list[str] = []
    tuner = tune.Tuner.restore(lost, sweeps.one_report, storage_filesystem=memory)
    monkeypatch.setattr(
        MemGuard, "on_trial_start", lambda self, trial, **_: ran.append(trial.trial_id)
    )
    resumed = tuner.fit()
    assert len(resumed) == 12
    assert not machine.safe.intersection(ran)
    assert {sweeps.stable(result.metrics)["score"] for result in resumed} == {
        result["score"] for result in first.values()
    }
