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

from ray_tune_memguard import MemGuard, open_experiment, read_rss_series
from tests.integration import equality, sweeps
from tests.integration.equality import Both, Case


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
    filesystem = pyarrow.fs.S3FileSystem(
        access_key="any",
        secret_key="any",
        region="us-east-1",
        scheme="http",
        endpoint_override=f"{host}:{port}",
        allow_bucket_creation=True,
    )
    filesystem.create_dir("bucket")
    yield filesystem
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
