"""Which names of a module can hold memory, without running anybody's code."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from ray_tune_memguard.adapter import retention_sites
from ray_tune_memguard.diagnostics.deep_size import DeepSizer
from ray_tune_memguard.system import classes


class Contrary(type):
    """Its classes are equal to nothing, loudly."""

    def __eq__(cls, other: object) -> bool:
        raise AssertionError("somebody compared")

    __hash__ = type.__hash__


class Odd(metaclass=Contrary):
    pass


class Registry:
    items: list[bytes] = []  # noqa: RUF012
    limit = 5


@functools.cache
def remembered(size: int) -> bytes:
    return bytes(size)


def with_attribute() -> None:
    pass


def with_default(*, kept: list[bytes] = []) -> None:  # noqa: B006
    kept.append(b"")


def plain(size: int = 5, *, name: str = "") -> tuple[int, str]:
    return size, name


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    made = types.ModuleType("memguard_users_module")
    retention_sites._users.clear()
    made.__file__ = "/somewhere/of/a/user.py"
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


def named(namespace: dict[str, Any]) -> list[str]:
    return [name for name, _ in retention_sites._globals(namespace)]


def test_what_can_hold_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(with_attribute, "history", [bytes(5000)], raising=False)
    things = {"remembered": remembered, "with_attribute": with_attribute, "plain": plain}
    things |= {"with_default": with_default, "odd": Odd(), "number": 5, "Registry": Registry}
    assert named(things) == ["remembered", "with_attribute", "with_default", "odd"]


def test_classes_of_a_users_module(module: types.ModuleType) -> None:
    own = type("Own", (), {"__module__": module.__name__, "kept": [1]})
    vars(module).update(own=own, other=Registry)
    assert retention_sites._classes_of(module.__name__) == [own]
    assert named(dict(vars(own))) == ["kept"]
    assert retention_sites.is_users_module(module.__name__)
    assert not retention_sites.is_users_module("memguard_nobodys_module")


def test_a_package_of_another_environment_is_a_librarys(module: types.ModuleType) -> None:
    module.__file__ = "/opt/other/lib/python3.11/site-packages/package/module.py"
    assert not retention_sites.is_users_module(module.__name__)


def test_a_cache_and_attributes_are_measured() -> None:
    before = DeepSizer().measure(remembered).total
    remembered(40_000)
    assert DeepSizer().measure(remembered).total - before == pytest.approx(40_000, rel=0.05)
    remembered.cache_clear()

    def function() -> None:
        pass

    assert classes.held_by_function(function) == []
    function.kept = bytes(30_000)  # type: ignore[attr-defined]
    assert DeepSizer().measure(function).total > 30_000


def test_growing_globals_compare_no_classes(module: types.ModuleType) -> None:
    kept: list[int] = [0] * 50
    vars(module).update(odd=Odd(), kept=kept)
    found = retention_sites.GrowingGlobals()
    found.compare(100)
    kept += range(50)
    found.compare(200)
    assert (module.__name__, "kept") in found.found
