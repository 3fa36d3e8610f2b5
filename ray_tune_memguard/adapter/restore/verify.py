"""Opens the trial store of an experiment's newest run and checks it once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ray_tune_memguard.adapter.installation import new_summary_index
from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.restore.locate import StoreRef
from ray_tune_memguard.notices import logger
from ray_tune_memguard.store.errors import (
    EmptyStoreError,
    StoreError,
    UnsupportedVersionError,
    damage_as_store_error,
)
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.trial_store import TrialStore

#: The metadata key, in a store built from a state file, of that file's version.
BUILT_FROM = "made from"


@dataclass(frozen=True)
class Damage:
    """What is wrong with a trial store."""

    path: Path
    reason: str
    #: Whether it may have trials that the store of the run before lacks.
    may_have_more: bool = True


@dataclass(frozen=True)
class VerifiedStore:
    """An intact trial store, opened for reading.

    Attributes:
        passed_over: damaged stores of later runs, which have no trials that this one lacks.
    """

    experiment: Experiment
    store: TrialStore
    snapshot: Snapshot
    passed_over: tuple[Damage, ...] = ()

    def is_owned(self) -> bool:
        """Whether the store is this experiment's own, and not that of an experiment it copies."""
        directories = self.experiment.store_directories()
        owner = self.store.get_metadata("experiment")
        return self.store.path.parent in directories or self.experiment.is_at(owner)

    def close(self) -> None:
        self.store.close()


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


class NothingToReadError(StoreError):
    """A trial store is damaged, and has no trial that its own run has finished.

    It cannot be opened, or its run ended before its first checkpoint.
    """


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
            damaged.append(Damage(path, str(error), not isinstance(error, NothingToReadError)))
            continue
        if found is None:
            continue
        built_from = found.store.get_metadata(BUILT_FROM)
        if built_from is None:
            is_current = not ref.went_on_alone(path)
        else:
            is_current = ref.state_file is not None and built_from == ref.state_file.version
        if is_current and not any(damage.may_have_more for damage in damaged):
            # It is as new as the experiment state file, from which a store would be rebuilt.
            for damage in damaged:
                logger.warning(
                    "The trial store %s is damaged (%s), and no trial can be read from it. The "
                    "store of the run before is used, %s.",
                    damage.path,
                    damage.reason,
                    path,
                )
            return replace(found, passed_over=tuple(damaged))
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
        NothingToReadError: it is damaged, and no trial can be read from it.
        StoreError: it is damaged.
    """
    try:
        store = TrialStore.open(path)
    except (EmptyStoreError, UnsupportedVersionError):
        raise
    except StoreError as error:
        raise NothingToReadError(str(error)) from error
    try:
        reason = store.damage()
        if reason is not None:
            with damage_as_store_error():
                has_checkpoint = store.has_snapshot()
            raise StoreError(reason) if has_checkpoint else NothingToReadError(reason)
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
