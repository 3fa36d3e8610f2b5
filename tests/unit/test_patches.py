"""What is wrapped in Ray can be unwrapped again, to the last function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ray_tune_memguard.adapter import contract
from ray_tune_memguard.adapter.analysis import patches


@pytest.fixture(autouse=True)
def installed_afterwards() -> Iterator[None]:
    yield
    patches.install(contract.probe())


def every_patch() -> list[patches.Patch]:
    return [patch for made in patches.PATCHES.values() for patch in made()]


def functions() -> list[Any]:
    return [vars(patch.owner).get(patch.name) for patch in every_patch()]


def test_uninstalling_puts_rays_own_functions_back() -> None:
    patches.uninstall()
    plain = functions()
    rays = [function.fget if isinstance(function, property) else function for function in plain]
    assert all(function.__module__.startswith("ray.") for function in rays if function)
    patches.install(contract.probe())
    wrapped = functions()
    assert all(one is not other for one, other in zip(plain, wrapped, strict=True))
    patches.install(contract.probe())
    assert functions() == wrapped
    patches.uninstall()
    assert functions() == plain


def test_a_wrapper_of_somebody_else_stays_and_calls_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    patch = next(patch for patch in every_patch() if patch.name == "_get_trials_by_state")
    ours = getattr(patch.owner, patch.name)
    monkeypatch.setattr(patch.owner, patch.name, lambda trials: ours(trials))
    theirs = getattr(patch.owner, patch.name)
    patches.uninstall()
    assert getattr(patch.owner, patch.name) is theirs
    assert theirs([]) == {}
