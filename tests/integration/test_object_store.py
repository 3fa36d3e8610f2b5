"""The object store of real clusters in plain words, and leaks into it that are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.own_process import said_by

#: What it measures is the whole machine.
pytestmark = pytest.mark.alone


def run(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = said_by(
        ["tests.integration.object_situations", *arguments],
        timeout=540,
        variables={"RAY_ADDRESS": ""},
    )
    return found


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    pytest.importorskip("grpc", reason="grpcio is not installed")
    return run("situations")


PRIMARY = "are primary copies: they stay until nothing refers to them"
SPILLED = "are on disk now, because they did not fit"
COPIES = "are copies of spilled objects, for reading"


@pytest.mark.parametrize(
    ("situation", "held", "words", "unsaid"),
    [
        ("start", 0, ["next to nothing"], [PRIMARY, SPILLED, COPIES]),
        ("put", 50, [f"50.0 MiB (63 % of the store) {PRIMARY}"], [SPILLED, COPIES]),
        ("mapped", 50, [f"50.0 MiB (63 % of the store) {PRIMARY}"], [SPILLED, COPIES]),
        ("over capacity", 110, [SPILLED], []),
        ("views dropped", 110, [SPILLED], []),
        ("read once", 110, [SPILLED, COPIES, "they are no leak"], []),
        ("dropped", 0, [], [PRIMARY, SPILLED]),
    ],
)
def test_seven_situations_in_words(
    said: dict[str, Any], situation: str, held: int, words: list[str], unsaid: list[str]
) -> None:
    found = said[situation]
    # Ray decides how much of it is spilled.
    assert found["primary"] + found["spilled"] == held
    assert found["capacity"] == 80
    assert all(sentence in found["words"] for sentence in words)
    assert not any(sentence in found["words"] for sentence in unsaid)
    assert (PRIMARY in found["words"]) == (found["primary"] > 0)
    assert found["unseen"] == []


def test_the_holders_are_told(said: dict[str, Any]) -> None:
    assert said["put"]["kinds"] == {"LOCAL_REFERENCE": 50}
    assert said["mapped"]["kinds"] == {"PINNED_IN_MEMORY": 50}
    assert said["over capacity"]["kinds"] == {"LOCAL_REFERENCE": 60, "PINNED_IN_MEMORY": 50}
    # The copies that were read are not what the driver holds.
    assert said["read once"]["kinds"] == {"LOCAL_REFERENCE": 110}
    assert said["read once"]["used"] > said["read once"]["primary"]
    assert said["dropped"]["kinds"] == {}


def test_looking_starts_no_worker(said: dict[str, Any]) -> None:
    assert said["started"] == 0


def test_each_word_is_explained_where_it_is_shown(said: dict[str, Any]) -> None:
    text = said["text"]
    for word in ("capacity", "used", "primary", "spilled now", "created", "fallback"):
        assert f"\n{word}: " in text
    assert "\nLOCAL_REFERENCE: a Python variable" in text
    assert "driver (pid " in text


def test_a_leak_of_200_kb_a_trial_is_named_within_100_trials(tmp_path: Path) -> None:
    found = run("leak", str(tmp_path))
    assert found["errors"] == 0
    [line] = found["lines"]
    assert found["per_trial"] == pytest.approx(200_000, rel=0.1)
    [leak] = found["leaks"]
    assert leak in line
    assert int(line.partition("#")[2].split()[0]) <= 100
    try:
        import grpc  # noqa: F401
    except ImportError:
        assert "ray-tune-memguard[objects]" in leak
        return
    assert "Who holds most: actor 'archive' of class Archive (pid " in leak
    assert "object_situations.py:keep:" in leak


def test_objects_of_running_trials_are_no_leak(tmp_path: Path) -> None:
    found = run("no leak", str(tmp_path))
    assert found["errors"] == 0
    assert found["lines"] == []
    assert found["looks"] >= 3
