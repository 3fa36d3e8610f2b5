"""Chains of references in words, and types that are counted."""

from __future__ import annotations

import gc
import types
import weakref
from pathlib import Path
from typing import Any

import pytest

from ray_tune_memguard.diagnostics import references
from ray_tune_memguard.diagnostics.references import (
    chain_down,
    chain_up,
    draw_referrers,
    modules_by_namespace,
    type_counts,
    typical_of,
)

KEPT_HERE: list[Any] = []


class Marked:
    pass


class Mine:
    def __init__(self, history: Any) -> None:
        self.note = "short"
        self.history = history


def test_down_along_the_heaviest() -> None:
    mine = Mine([{"payload": bytes(1000), "n": i} for i in range(812)])
    assert chain_down("Callback.mine", mine, set()) == (
        "Callback.mine → Mine.history → list[812] → dict[2] → bytes"
    )


def test_down_through_a_closure() -> None:
    seen = [bytes(5000)]

    def remember() -> Any:
        return seen

    assert chain_down("Searcher.deal", remember, set()) == (
        "Searcher.deal → function.seen → list[1] → bytes"
    )


def test_down_ends_at_barriers_and_in_circles() -> None:
    inner = [bytes(5000)]
    circle: list[Any] = [inner]
    circle.append(circle)
    assert chain_down("x", [inner], {id(inner)}) == "x → list[1]"
    assert chain_down("x", circle, set()).count("→") < 10


def test_up_to_a_global() -> None:
    KEPT_HERE.append({"deep": Marked()})
    names = modules_by_namespace()
    try:
        found = chain_up(KEPT_HERE[0]["deep"], lambda at: names.get(id(at)), 10.0)
    finally:
        KEPT_HERE.clear()
    assert found.root == __name__
    assert found.words == f"{__name__}.KEPT_HERE → list[1] → dict[1].deep → Marked"


def test_up_from_a_cycle_leads_nowhere() -> None:
    first, second = Marked(), Marked()
    first.other, second.other = second, first  # type: ignore[attr-defined]
    # As an object that the collector handed out: no variable refers to it but our own.
    box = [first]
    del first, second
    names = modules_by_namespace()
    found = chain_up(box.pop(), lambda at: names.get(id(at)), 10.0)
    assert (found.root, found.closed) == (None, True)


def test_up_keeps_its_time() -> None:
    found = chain_up(KEPT_HERE, lambda at: None, 0.0)
    assert (found.root, found.closed) == (None, False)


def test_types_are_counted() -> None:
    gc.collect()
    kept = [Marked() for _ in range(500)]
    counts, complete = type_counts(10.0)
    assert complete
    assert counts[f"{__name__}.Marked"] == len(kept)


def test_a_part_of_all_objects_stands_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "_CHUNK", 5000)
    kept = [Marked() for _ in range(20_000)]
    counts, complete = type_counts(0.0)
    assert not complete
    assert counts[f"{__name__}.Marked"] == pytest.approx(len(kept), rel=0.3)


def test_a_typical_object() -> None:
    kept = [Marked() for _ in range(9)]
    found = typical_of(f"{__name__}.Marked", most=2)
    assert len(found) == 2
    assert all(any(one is its for its in kept) for one in found)
    assert typical_of("nowhere.Marked") == []


def test_counting_keeps_nothing() -> None:
    kept = [Marked()]
    reference = weakref.ref(kept[0])
    type_counts(10.0)
    typical_of(f"{__name__}.Marked")
    kept.clear()
    assert reference() is None


def test_the_picture(tmp_path: Path) -> None:
    KEPT_HERE.append(Marked())
    file = tmp_path / "referrers.dot"
    try:
        draw_referrers(f"{__name__}.Marked", str(file))
    finally:
        KEPT_HERE.clear()
    assert "Marked" in file.read_text()
    with pytest.raises(ValueError, match="there is no object of such a type"):
        draw_referrers("nowhere.Nothing", str(file))


def test_the_collector_is_left_alone() -> None:
    thresholds, frozen = gc.get_threshold(), gc.get_freeze_count()
    type_counts(10.0)
    chain_up(types.SimpleNamespace(), lambda at: None, 1.0)
    assert (gc.get_threshold(), gc.get_freeze_count()) == (thresholds, frozen)
    assert gc.isenabled()
