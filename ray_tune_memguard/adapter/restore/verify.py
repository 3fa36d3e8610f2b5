"""Opens the trial store of an experiment's newest run and checks it once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_tune_memguard.adapter.installation import new_summary_index
from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.restore.locate import StoreRef
from ray_tune_memguard.store.errors import EmptyStoreError, StoreError, UnsupportedVersionError
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.trial_store import TrialStore

#: The metadata key, in a store built from a state file, of that file's version.
BUILT_FROM = "made from"


@dataclass(frozen=True)
class VerifiedStore:
    """An intact trial store, opened for reading."""

    experiment: Experiment
    store: TrialStore
    snapshot: Snapshot

    def is_owned(self) -> bool:
        """Whether the store is this experiment's own, and not that of an experiment it copies."""
        directories = self.experiment.store_directories()
        owner = self.store.get_metadata("experiment")
        return self.store.path.parent in directories or self.experiment.is_at(owner)

    def close(self) -> None:
        self.store.close()


@dataclass(frozen=True)
class Damage:
    """What is wrong with a trial store."""

    path: Path
    reason: str


class DamagedStoreError(StoreError):
    """The newest run's trial store is damaged.

    Attributes:
        damaged: the stores that are damaged, the newest run's first.
        intact: an intact store of a run before them, if there is one.
    """

    def __init__(self, damaged: Sequence[Damage], intact: Path | None) -> None:
        super().__init__(f"{damaged[0].path}: {damaged[0].reason}")
        self.damaged = damaged
        self.intact = intact


def verify(ref: StoreRef) -> VerifiedStore | None:
    """Open the newest run's trial store.

    Returns:
        The store; None if the newest run left none, because Ray ran alone.

    Raises:
        OSError, sqlite3.Error: the store cannot be read now.
        DamagedStoreError: it is damaged.
        UnsupportedVersionError: another version of this package wrote it.
    """
    damaged: list[Damage] = []
    empty: list[Damage] = []
    intact: Path | None = None
    for path in ref.current_stores():
        try:
            found = _open(path, ref.experiment)
        except FileNotFoundError:
            if path.exists():
                raise  # Another file is missing. The store may be whole.
            continue
        except EmptyStoreError as error:
            empty.append(Damage(path, str(error)))
            continue
        except UnsupportedVersionError as error:
            raise UnsupportedVersionError(f"{path}: {error}") from error
        except StoreError as error:
            damaged.append(Damage(path, str(error)))
            continue
        if found is None:
            continue
        built_from = found.store.get_metadata(BUILT_FROM)
        if built_from is None:
            is_current = not ref.went_on_alone(path)
        else:
            is_current = ref.state_file is not None and built_from == ref.state_file.version
        if is_current and not damaged:
            return found
        found.close()
        if is_current:
            # This store has trials that a newer, damaged one may have lost.
            intact = path
        break
    # An empty store has nothing that an older one lacks.
    if damaged or empty:
        raise DamagedStoreError(damaged or empty, intact)
    return None


def _open(path: Path, experiment: Experiment) -> VerifiedStore | None:
    """The opened store; None if its run ended before its first checkpoint.

    Raises:
        StoreError: it is damaged.
    """
    store = TrialStore.open(path)
    try:
        reason = store.damage()
        if reason is not None:
            raise StoreError(reason)
        if store.has_snapshot():
            return VerifiedStore(experiment, store, load_snapshot(store))
    except BaseException:
        store.close()
        raise
    store.close()
    return None


def load_snapshot(store: TrialStore) -> Snapshot:
    """The last snapshot in a store.

    Raises:
        StoreError: there is none, or it is damaged.
    """
    try:
        snapshot = Snapshot.load(store)
        new_summary_index().load(snapshot.summaries)
    except (KeyError, ValueError) as error:
        raise StoreError(f"its snapshot is incomplete: {error!r}") from error
    return snapshot
