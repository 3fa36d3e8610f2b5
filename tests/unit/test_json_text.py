"""Both ways of writing JSON mean the same, or the quick one is not taken."""

from __future__ import annotations

import datetime
import enum
import json
import math
import random
import struct
import uuid
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ray_tune_memguard.adapter.serialization.json_text import decode, encode
from ray_tune_memguard.adapter.serialization.plain_pickle import pickle_plainly
from ray_tune_memguard.adapter.serialization.state_record import state_record


class Colour(enum.Enum):
    RED = 1


class Size(enum.IntEnum):
    BIG = 7


class Word(str, enum.Enum):
    YES = "y"


@dataclass
class Point:
    x: int = 1


Pair = namedtuple("Pair", "a b")


class Doubled(dict[str, Any]):
    """Tells something else than it holds."""

    def items(self) -> Any:
        return [(key, 2 * value) for key, value in super().items()]


class Text(str):
    pass


class Interrupted:
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


class Number(float):
    def __float__(self) -> float:
        return 42.0

    def __repr__(self) -> str:
        return "a number"


_DEEP: Any = 1
for _ in range(300):
    _DEEP = [_DEEP]

PLAIN = {
    "of Python's own": {"a": [1, 2.5, "x", None, True, (1, (2,))], "b": {"c": {}}},
    "floats": [0.1 + 0.2, 1e16, 1e22, -0.0, 5e-324, 1.7976931348623157e308, 1e-5, 3.0],
    "NumPy's usual number": {"a": np.float64(0.1), "b": [np.float64(-2.0)]},
    "NumPy's others": {"a": np.float32(0.1), "b": np.int64(3), "c": np.arange(3)},
    "text": 'a "word" \\ \x7f \x01 \n / </script>',
    "text in another alphabet": {"Zürich": "東京 \U0001f600 \u2028"},
    "half of a character": "\udc80",
    "large numbers": [2**63, 2**64, -(2**70), 2**53 + 1],
    "names that are no text": {5: 1, 2.5: 2, None: 3, True: 4},
    "a date": datetime.datetime(2026, 1, 2, 3, 4, 5),
    "a day": [datetime.date(2026, 1, 2), datetime.time(1, 2)],
    "a dataclass": Point(3),
    "a named tuple": Pair(1, 2),
    "an ordered dictionary": OrderedDict(b=1, a=2),
    "a dictionary with its own way": Doubled(a=2),
    "a text of another kind": {"a": Text("b"), Text("c"): 1},
    "a number of another kind": [Number(2.5)],
    "bytes and sets": {"a": b"\x00G\x7f", "b": {1, 2}, "c": bytearray(b"x"), "d": 1 + 2j},
    "deeply nested": _DEEP,
}
NOT_PLAIN = {
    "not a number": {"a": [0.0, float("nan")]},
    "infinite": {"a": {"b": float("inf")}},
    "minus infinite": -math.inf,
    "an enumeration": [Colour.RED],
    "one of numbers": {"size": Size.BIG},
    "one of texts": {"a": Word.YES},
    "one as a name": {Word.YES: 1},
    "a unique id": {"id": uuid.UUID(int=5)},
}


def in_words(value: Any) -> Any:
    # What is not equal to itself, and what only looks alike.
    if isinstance(value, dict):
        return [(key, in_words(part)) for key, part in value.items()]
    if isinstance(value, list):
        return [in_words(part) for part in value]
    return type(value), repr(value)


@pytest.mark.parametrize("value", [*PLAIN.values(), *NOT_PLAIN.values()], ids=[*PLAIN, *NOT_PLAIN])
def test_it_is_the_same_in_both_ways(value: Any) -> None:
    is_plain = pickle_plainly(value).is_plain
    text = encode(value, is_plain)
    assert text.isascii()
    assert in_words(decode(text)) == in_words(decode(encode(value)))


@pytest.mark.parametrize("value", PLAIN.values(), ids=PLAIN)
def test_what_is_plain(value: Any) -> None:
    assert pickle_plainly(value).is_plain


@pytest.mark.parametrize("value", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_what_would_be_written_otherwise_is_not_plain(value: Any) -> None:
    assert not pickle_plainly(value).is_plain


@pytest.mark.parametrize("value", [np.float64("nan"), np.float32("inf"), np.array([np.nan])])
def test_a_number_of_numpy_that_is_none(value: Any) -> None:
    is_plain = pickle_plainly({"a": value}).is_plain
    assert in_words(decode(encode({"a": value}, is_plain))) == in_words(
        decode(encode({"a": value}))
    )


def test_any_float_comes_back() -> None:
    choose = random.Random(0)
    for _ in range(3000):
        (number,) = struct.unpack(">d", choose.randbytes(8))
        is_plain = pickle_plainly([number]).is_plain
        assert is_plain == math.isfinite(number)
        (back,) = decode(encode([number], is_plain))
        assert struct.pack(">d", back) == struct.pack(">d", number) or back != back


def test_what_can_neither_be_written_nor_pickled_is_refused() -> None:
    with pytest.raises(TypeError):
        encode({(1, 2): 3}, plain=True)
    import threading

    with pytest.raises(TypeError, match="pickle"):
        encode([threading.Lock()], plain=True)


def test_an_interrupt_is_one() -> None:
    with pytest.raises(KeyboardInterrupt):
        encode([Interrupted()], plain=True)


@pytest.mark.parametrize("texts", [("{}", '{"a": "\\n \x7f"}'), ("é\u2028", "\n\x01"), ("", "\\")])
def test_an_entry_has_both_texts(texts: tuple[str, str]) -> None:
    entry = state_record(*texts)
    assert entry.isascii()
    assert json.loads(entry) == list(texts)
