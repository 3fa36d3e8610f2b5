"""The contract with Ray: what this Ray lacks, and which capabilities are off because of it."""

from __future__ import annotations

import pytest

from ray_tune_memguard.adapter import contract
from ray_tune_memguard.adapter.contract import NAMES
from ray_tune_memguard.private_names import PrivateName


def hide(monkeypatch: pytest.MonkeyPatch, hidden: PrivateName) -> None:
    """Let the probe not find one name."""
    found = contract.is_there
    monkeypatch.setattr(
        contract, "is_there", lambda row, part=None: row != hidden and found(row, part)
    )


def test_this_ray_has_every_name() -> None:
    found = contract.probe()
    assert found.missing == ()
    assert found.on == frozenset(contract.WITHOUT)
    assert found.warning() is None


def test_every_capability_needs_a_name_and_says_what_is_lost() -> None:
    assert {name for row in NAMES for name in row.needed_by} == set(contract.WITHOUT)


@pytest.mark.parametrize("row", NAMES, ids=str)
def test_without_a_name_only_what_needs_it_is_off(
    row: PrivateName, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, row)
    found = contract.probe()
    off = frozenset(contract.WITHOUT) - found.on
    assert off.issuperset(row.needed_by)
    built_on = {base for bases in contract.BUILDS_ON.values() for base in bases}
    if not built_on.intersection(row.needed_by):
        assert off == frozenset(row.needed_by)
    warning = found.warning() or ""
    assert str(row) in warning
    assert all(f"{name} (" in warning for name in row.needed_by)


def test_a_method_with_other_parameters_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.tune.execution.tune_controller import TuneController

    monkeypatch.setattr(TuneController, "get_trial", lambda self, name: None)
    [missing] = contract.probe().missing
    assert str(missing) == "TuneController.get_trial(tid)"


def test_a_module_that_is_gone_takes_its_capabilities_along() -> None:
    gone = PrivateName("ray.tune.no_such_module:Thing", "_name", (contract.UPLOADS,))
    assert not contract.is_there(gone)


def test_a_stand_in_is_asked_itself() -> None:
    class Manager:
        _tracked_actors_to_task_futures: tuple[()] = ()

    class Controller:
        _actor_manager = Manager()

    missing = {row.name for row in contract.probe(Controller()).missing}
    assert "_pending_actors_to_attrs" in missing
    assert "_tracked_actors_to_task_futures" not in missing
    assert "_tracked_futures" not in missing


def test_the_rollback_empties_what_a_restore_fills() -> None:
    assert set(contract.emptied_by_rollback()) == {
        "_live_trials",
        "_pending_trials",
        "_pending_trials_list",
        "_paused_trials",
        "_stopped_trials",
        "_failed_trials",
        "_trials_to_cache",
        "_trial_metadata",
        "_resources_to_pending_trials",
    }
