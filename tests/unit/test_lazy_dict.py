"""What a user does to a dict with one value for each trial has the result that it has on a dict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ray_tune_memguard.lazy.containers import LazyTrialDict
from ray_tune_memguard.lazy.trial_list import SpilledTrials

Dict = dict[str, Any]
FIRST, SECOND = "t00000", "t00001"


def number_of(trial: Any) -> Any:
    return trial.config["number"]


def remove(values: Dict, key: str) -> None:
    del values[key]


USES: dict[str, list[Callable[[Dict], object]]] = {
    "del": [lambda values: remove(values, FIRST)],
    "del twice": [lambda values: remove(values, FIRST), lambda values: remove(values, FIRST)],
    "del unknown": [lambda values: remove(values, "none")],
    "read a removed one": [lambda values: remove(values, FIRST), lambda values: values[FIRST]],
    "get a removed one": [lambda values: values.pop(FIRST), lambda values: values.get(FIRST, 9)],
    "pop": [lambda values: values.pop(SECOND)],
    "pop unknown": [lambda values: values.pop("none", 5), lambda values: values.pop("none")],
    "pop None": [lambda values: values.pop("none", None)],
    "popitem": [lambda values: values.popitem(), lambda values: values.popitem()],
    "clear": [lambda values: values.clear(), lambda values: values.popitem()],
    "store again": [
        lambda values: values.pop(FIRST),
        lambda values: values.__setitem__(FIRST, 7),
        lambda values: values.setdefault(SECOND, 8),
    ],
    "remove what was stored": [
        lambda values: values.update({FIRST: 7, "own": 8}),
        lambda values: values.pop(FIRST),
        lambda values: remove(values, "own"),
    ],
    "store after clear": [lambda values: values.clear(), lambda values: values.update(own=1)],
}


def outcome(use: Callable[[Dict], object], values: Dict) -> object:
    try:
        return use(values)
    except KeyError as error:
        return type(error), error.args


@pytest.mark.parametrize("name", USES)
def test_as_on_a_dict(trials: SpilledTrials[Any], name: str) -> None:
    lazy = LazyTrialDict(trials, number_of)
    plain = {trial.trial_id: number_of(trial) for trial in trials}
    assert not lazy.is_changed()
    for use in USES[name]:
        assert outcome(use, lazy) == outcome(use, plain)
        assert list(lazy.items()) == list(plain.items())
        assert len(lazy) == len(plain)
        assert list(reversed(lazy)) == list(reversed(plain))
        assert bool(lazy) == bool(plain)
        assert [key in lazy for key in (FIRST, SECOND, "own")] == [
            key in plain for key in (FIRST, SECOND, "own")
        ]
    assert lazy.is_changed() == (name not in ("del unknown", "pop unknown", "pop None"))
