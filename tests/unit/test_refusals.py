"""An error of the disk is not damage: with the error gone, every committed row is there."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem

from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.restore.locate import locate
from ray_tune_memguard.adapter.restore.rebuild import verify_or_rebuild
from ray_tune_memguard.adapter.restore.verify import verify
from ray_tune_memguard.adapter.run.checkpoint import with_pointer
from ray_tune_memguard.store import files
from ray_tune_memguard.store.errors import StoreError, is_damage, is_locked
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.trial_store import TrialStore
from tests.unit.failing_sqlite import REFUSALS, error_of, failing
from tests.unit.fakes import NO_SUMMARIES, fake_row

RUN = "2026-11-22_10-00-00"
TRIALS = 6
IDS = {f"t{number}" for number in range(TRIALS)}
STATE = '{"trial_data": [], "runner_data": {}, "stats": {}}'


def spill(store: TrialStore, number: int) -> None:
    entry = b'["{\\"trial_id\\": \\"t%d\\", \\"status\\": \\"TERMINATED\\"}", "{}"]' % number
    with store.transaction():
        store.put(number, fake_row(f"t{number}", state=entry))


def make_experiment(path: Path) -> TrialStore:
    """An experiment whose run is under way: half of its rows came after its snapshot."""
    store = TrialStore.create(path / ".memguard", f"trials-{RUN}")
    store.set_metadata(experiment=str(path), staging=str(path))
    for number in range(TRIALS):
        if number == TRIALS // 2:
            Snapshot(
                STATE, positions=[], creation_count=0, summaries=NO_SUMMARIES, files=None
            ).save(store)
        spill(store, number)
    (path / f"experiment_state-{RUN}.json").write_text(with_pointer(STATE, store.path))
    return store


@pytest.fixture(autouse=True)
def _nothing_is_left_in_the_temporary_directory(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    directory = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield
    assert not list(directory.iterdir())


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The same after its run was killed: what is committed is in the log."""
    store = make_experiment(tmp_path / "running")
    shutil.copytree(tmp_path / "running", tmp_path / "killed")
    store.close()
    [log] = (tmp_path / "killed" / ".memguard").glob("*-wal")
    assert log.stat().st_size > 0
    return tmp_path / "killed"


@pytest.fixture
def damaged(killed: Path) -> Path:
    """The same with one row changed after the kill."""
    path = store_path(killed)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("UPDATE trial SET settled_at = 0 WHERE seq = 3")
    kept = {file: file.read_bytes() for file in path.parent.iterdir()}
    connection.close()
    for file, content in kept.items():
        file.write_bytes(content)
    return killed


def store_path(experiment: Path) -> Path:
    return experiment / ".memguard" / f"trials-{RUN}.sqlite"


def contents(experiment: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in experiment.rglob("*") if file.is_file()}


def ids_in(path: Path) -> set[str]:
    store = TrialStore.open(path)
    found = {row.trial_id for row in store.rows(0, 100)}
    store.close()
    return found


def find(experiment: Path, *, salvage: bool = False) -> TrialStore | None:
    place = Experiment(LocalFileSystem(), str(experiment))
    found = (verify_or_rebuild if salvage else verify)(locate(place))
    return None if found is None else found.store


# What each of these does to an experiment is interrupted by an error at each call to SQLite.


def look(experiment: Path) -> None:
    store = find(experiment)
    assert store is not None
    assert {row.trial_id for row in store.rows(0, 100)} == IDS
    assert len(list(store.state_records())) == TRIALS
    Snapshot.load(store)
    store.close()


def resume(experiment: Path) -> None:
    source = find(experiment, salvage=True)
    assert source is not None
    target = TrialStore.create(experiment / ".memguard", "trials-2026-11-23_10-00-00")
    with target.first_transaction(source):
        target.copy_rows([(number, number) for number in range(TRIALS)])
    target.close()
    files.remove(target.path)  # This run, too, ends before it has a checkpoint.
    source.close()


def salvage(experiment: Path) -> None:
    store = TrialStore.open(store_path(experiment))
    assert {row.trial_id for row in store.salvage()} == IDS
    store.close()


def finalize(experiment: Path) -> None:
    store = make_experiment(experiment.with_name("another"))
    try:
        store.finalize()
    finally:
        store.close()
        shutil.rmtree(experiment)
        experiment.with_name("another").rename(experiment)


@pytest.mark.parametrize("stays", [True, False], ids=["for good", "once"])
@pytest.mark.parametrize("kind", ["I/O", "locked"])
@pytest.mark.parametrize("act", [look, resume, salvage])
def test_an_error_at_any_call_costs_no_row(
    killed: Path,
    act: Callable[[Path], None],
    kind: str,
    stays: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = contents(killed)
    for at in calls_of(act, killed, partial(error_of, kind), stays, monkeypatch):
        assert contents(killed).items() >= before.items(), f"changed by an error at call {at}"
        for path in killed.glob(".memguard/trials-2026-11-23*"):
            path.unlink()
        look(killed)


@pytest.mark.parametrize(
    ("with_code", "stays"), [(True, False), (False, True)], ids=["once", "for good, Python 3.10"]
)
def test_an_error_while_a_damaged_store_is_rebuilt_costs_no_row(
    damaged: Path, with_code: bool, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = damaged.with_name("kept")
    shutil.copytree(damaged, kept)
    error = partial(error_of, "I/O", with_code=with_code)

    def rebuild(experiment: Path) -> None:
        store = find(experiment, salvage=True)
        assert store is not None
        store.close()

    for at in calls_of(rebuild, damaged, error, stays, monkeypatch):
        store = find(damaged, salvage=True)
        assert store is not None
        assert {row.trial_id for row in store.rows(0, 100)} == IDS - {"t3"}, at
        store.close()
        shutil.rmtree(damaged)
        shutil.copytree(kept, damaged)


def test_an_error_while_a_store_is_finalized_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = 0
    while True:
        experiment = tmp_path / f"run{at}"
        with failing(monkeypatch, 10**9, partial(error_of, "full")) as fault:
            store = make_experiment(experiment)
            fault.at = fault.calls + at
            try:
                store.finalize()
            except sqlite3.OperationalError:
                pass
            happened = fault.happened
        # The driver is killed here: what it has not written is lost.
        shutil.copytree(experiment, tmp_path / f"left{at}")
        assert ids_in(store_path(tmp_path / f"left{at}")) == IDS
        store.close()
        assert ids_in(store.path) == IDS
        if not happened:
            assert at > 2
            return
        at += 1


def calls_of(
    act: Callable[[Path], None],
    experiment: Path,
    error: Callable[[], Exception],
    stays: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[int]:
    """Do it with an error at each call to SQLite in turn; each time control is given back."""
    at = 0
    while True:
        with failing(monkeypatch, at, error, stays) as fault:
            try:
                act(experiment)
            except (OSError, sqlite3.OperationalError):
                pass
            happened = fault.happened
        if not happened:
            assert at > 5, "the error never happened"
            return
        yield at
        at += 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_log_that_cannot_be_copied_leaves_everything(
    killed: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(killed)
    copyfile = shutil.copyfile

    def refuse(source: Path, target: Path) -> None:
        if source.name.endswith("-wal"):
            raise OSError(number, os.strerror(number), str(source))
        copyfile(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", refuse)
        with pytest.raises(OSError, match="wal"):
            find(killed, salvage=True)
    assert contents(killed) == before
    look(killed)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOSPC, errno.EACCES])
def test_without_a_temporary_directory_everything_stays(
    killed: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That its copy has no place does not mean that the store is missing."""
    before = contents(killed)

    def refuse(*_: object, **__: object) -> str:
        raise OSError(number, os.strerror(number), "/missing")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkdtemp", refuse)
        with pytest.raises(OSError, match="no temporary directory"):
            find(killed, salvage=True)
    assert contents(killed) == before
    look(killed)


def test_a_copy_is_read_beside_the_store_if_there_is_no_other_place(
    killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(killed)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/missing")
    monkeypatch.setattr(files, "_SHARED_MEMORY", "/missing")
    look(killed)
    assert contents(killed) == before


def test_looking_changes_no_file(killed: Path) -> None:
    before = contents(killed)
    look(killed)
    assert contents(killed) == before


def test_two_can_look_at_once(killed: Path) -> None:
    one, other = find(killed), find(killed)
    assert one is not None
    assert other is not None
    assert len(list(one.state_records())) == len(list(other.state_records())) == TRIALS


def test_a_store_that_is_being_written_is_reported_as_locked(tmp_path: Path) -> None:
    store = make_experiment(tmp_path)
    with pytest.raises(sqlite3.OperationalError) as caught:
        TrialStore.open(store.path)
    assert is_locked(caught.value)
    assert not is_damage(caught.value)
    # From another process as well, and still after somebody has looked from this one.
    script = (
        "import pathlib, sys\n"
        "from ray_tune_memguard.store.trial_store import TrialStore\n"
        "TrialStore.open(pathlib.Path(sys.argv[1]))"
    )
    tried = subprocess.run(
        [sys.executable, "-c", script, str(store.path)], capture_output=True, text=True, check=False
    )
    assert "database is locked" in tried.stderr
    spill(store, TRIALS)


@pytest.mark.parametrize("kind", REFUSALS)
@pytest.mark.parametrize("with_code", [True, False], ids=["code", "Python 3.10"])
def test_no_refusal_is_damage(kind: str, with_code: bool) -> None:
    error = error_of(kind, with_code=with_code)
    assert not is_damage(error)
    assert is_locked(error) is (kind == "locked")


def test_damage_is_told_alike_with_and_without_codes(tmp_path: Path) -> None:
    """Python 3.10 gives no codes; what it does give leads to the same answer."""
    store = make_experiment(tmp_path)
    store.finalize()
    store.close()
    content = store.path.read_bytes()
    kinds = set()
    told = {}
    for at in range(0, len(content), 37):
        changed = bytearray(content)
        changed[at] ^= 0xFF
        copy = tmp_path / "changed.sqlite"
        copy.write_bytes(changed)
        connection = sqlite3.connect(f"{copy.as_uri()}?mode=ro", uri=True)
        try:
            for query in (
                "SELECT * FROM trial",
                "SELECT seq FROM trial INDEXED BY trial_words WHERE status = ''",
                "SELECT * FROM meta WHERE key = 'a'",
                "SELECT * FROM snapshot",
            ):
                connection.execute(query).fetchall()
        except UnicodeDecodeError:
            kinds.add("a message that quotes what is no text")
        except sqlite3.Error as error:
            kinds.add(str(error))
            told[repr(error)] = is_damage(error), is_damage(type(error)(str(error)))
        finally:
            connection.close()
    assert set(told.values()) == {(True, True)}, told
    assert len(kinds) > 3, kinds


def test_a_damaged_store_is_set_aside_with_its_log(damaged: Path) -> None:
    before = contents(damaged)
    aside = files.set_aside(store_path(damaged))
    assert aside.name == f"trials-{RUN}.damaged"
    name = store_path(damaged).name
    assert aside.read_bytes() == before[name]
    assert aside.with_name(f"{aside.name}-wal").read_bytes() == before[f"{name}-wal"]
    assert not list(damaged.glob(f".memguard/{name}*"))


def test_a_store_that_cannot_be_read_whole_is_not_set_aside(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(damaged)

    def bad_sector(path: Path, *arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", bad_sector)
        with pytest.raises(OSError, match="Input/output"):
            files.set_aside(store_path(damaged))
    assert contents(damaged) == before


def test_a_new_store_does_not_take_the_log_of_an_old_one(tmp_path: Path) -> None:
    log = tmp_path / "trials.sqlite-wal"
    log.write_bytes(b"rows of somebody else's")
    store = TrialStore.create(tmp_path, "trials")
    spill(store, 0)
    store.close()
    assert store.path.name == "trials-1.sqlite"
    assert log.read_bytes() == b"rows of somebody else's"


def test_a_temporary_store_does_not_replace_a_damaged_one(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk the store is rebuilt elsewhere, for this process only."""
    before = contents(damaged)
    create = TrialStore.create

    def refuse(directory: Path, name: str) -> TrialStore:
        if directory == damaged / ".memguard":
            raise error_of("full")
        return create(directory, name)

    monkeypatch.setattr(TrialStore, "create", refuse)
    store = find(damaged, salvage=True)
    assert store is not None
    assert {row.trial_id for row in store.rows(0, 100)} == IDS - {"t3"}
    assert contents(damaged) == before


def test_a_damaged_newest_store_is_completed_from_the_one_before(killed: Path) -> None:
    """A resumed run was killed before its first checkpoint, and its store is damaged."""
    path = killed / ".memguard" / "trials-2026-11-23_10-00-00.sqlite"
    store = TrialStore.create(path.parent, path.stem)
    store.save_snapshot({"state": b""})
    spill(store, TRIALS)
    store.finalize()
    store.close()
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"x" * 4096)
    found = find(killed, salvage=True)
    assert found is not None
    assert {row.trial_id for row in found.rows(0, 100)} >= IDS
    found.close()
    look_again = find(killed)
    assert look_again is not None
    assert {row.trial_id for row in look_again.rows(0, 100)} >= IDS


def test_an_empty_newest_store_does_not_hide_the_one_before(killed: Path) -> None:
    """The driver was killed while it made the store of a resumed run."""
    before = contents(killed)
    (killed / ".memguard" / "trials-2026-11-23_10-00-00.sqlite").touch()
    look(killed)
    assert contents(killed).items() >= before.items()


def test_a_store_that_is_half_copied_does_not_hide_the_one_before(
    killed: Path, tmp_path: Path
) -> None:
    """The driver was killed while it copied the rows of the run before."""
    source = find(killed)
    assert source is not None
    target = TrialStore.create(killed / ".memguard", "trials-2026-11-23_10-00-00")
    target._connection.execute("PRAGMA cache_size=1")
    left = tmp_path / "left"
    with target.first_transaction(source):
        empty = target.path.stat().st_size
        target.copy_rows([(number, number) for number in range(TRIALS)])
        target.add_to_snapshot("too big for the cache", os.urandom(100_000))
        assert target.path.stat().st_size > empty
        assert target.path.with_name(f"{target.path.name}-journal").stat().st_size
        shutil.copytree(killed, left)
    target.close()
    source.close()
    before = contents(left)
    look(left)
    assert contents(left).items() >= before.items()


# On a real disk that is full.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        while _takes_more(file):
            pass
    return filler


def _takes_more(file: io.RawIOBase) -> bool:
    try:
        return bool(file.write(b"x" * 512))
    except OSError:
        return False


def test_a_full_disk(killed: Path, small_disk: Path) -> None:
    experiment = small_disk / "sweep"
    shutil.copytree(killed, experiment)
    before = contents(experiment)
    filler = fill(small_disk)
    look(experiment)
    with pytest.raises((OSError, sqlite3.OperationalError)):
        resume(experiment)
    assert contents(experiment).items() >= before.items()
    filler.unlink()
    look(experiment)
    resume(experiment)


def test_a_read_only_disk(killed: Path, small_disk: Path) -> None:
    experiment = small_disk / "sweep"
    shutil.copytree(killed, experiment)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    look(experiment)


def test_a_disk_that_is_full_when_the_run_ends(small_disk: Path) -> None:
    store = make_experiment(small_disk / "sweep")
    with store.transaction():
        store.put(TRIALS, fake_row("big", state=os.urandom(100_000)))
    filler = fill(small_disk)
    with pytest.raises(sqlite3.OperationalError):
        store.finalize()
    shutil.copytree(small_disk / "sweep", small_disk.with_name("left"))
    assert ids_in(store_path(small_disk.with_name("left"))) == {*IDS, "big"}
    filler.unlink()
    store.finalize()
    store.close()
    assert ids_in(store.path) == {*IDS, "big"}


def test_what_is_no_store_is_not_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite").write_bytes(b"nonsense" * 1000)
    with pytest.raises(StoreError):
        TrialStore.open(tmp_path / "x.sqlite")
