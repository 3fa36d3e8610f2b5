"""Reading a pickle back changes nothing that the process has."""

from __future__ import annotations

import abc
import enum
import json
import math
import pickle
import subprocess
import sys
from typing import Any

import pydantic
import pytest
from ray import cloudpickle

from ray_tune_memguard.adapter.serialization import json_text, unpickling

SEEN: list[int] = []


def make_class() -> type:
    """Pickled by value, as a class of a script or a notebook is."""

    class Stopper:
        """Stops."""

        count = 0
        best = None

        def __init__(self, limit: int) -> None:
            self.limit = limit

        def see(self, value: int) -> bool:
            SEEN.append(value)
            return value > self.limit

        @property
        def twice(self) -> int:
            return 2 * self.limit

    return Stopper


@pytest.fixture
def stopper() -> type:
    SEEN.clear()
    return make_class()


def read_back(value: object) -> object:
    return unpickling.loads(cloudpickle.dumps(value))


def as_ray(value: dict[str, Any]) -> Any:
    is_pickled = value.get("_type") == json_text.PICKLED
    return cloudpickle.loads(bytes.fromhex(value["value"])) if is_pickled else value


def test_a_class_that_exists_stays_as_it_is(stopper: type) -> None:
    made = stopper(3)
    stopper.count, stopper.best = 5, 7  # type: ignore[attr-defined]
    raw = cloudpickle.dumps(made)
    stopper.count, stopper.best = 6, None  # type: ignore[attr-defined]
    again = unpickling.loads(raw)
    assert type(again) is stopper
    assert (again.limit, again.twice) == (3, 6)
    assert (stopper.count, stopper.best) == (6, None)  # type: ignore[attr-defined]
    assert made.see.__globals__ is globals()
    assert again.see(4)
    assert SEEN == [4]


def test_that_is_what_cloudpickle_itself_does_not_do(stopper: type) -> None:
    made = stopper(3)
    cloudpickle.loads(cloudpickle.dumps(made))
    assert made.see.__globals__ is not globals()


def test_what_ray_wrote_as_json_is_read_like_that(stopper: type) -> None:
    made = stopper(3)
    text = json_text.encode({"stop": made, "more": [made]})
    found = json_text.decode(text)
    assert found["more"][0].limit == 3
    assert made.see.__globals__ is globals()


def test_ray_reads_the_same(stopper: type) -> None:
    made = stopper(3)
    text = json_text.encode({"stop": made, "x": math.nan, "more": [made, {"y": 1}]})
    with json_text.for_ray(text) as given:
        found = json.loads(given, object_hook=as_ray)
    assert (found["stop"].limit, found["more"][1]) == (3, {"y": 1})
    assert math.isnan(found["x"])
    assert made.see.__globals__ is globals()
    assert not json_text._read
    plain = json_text.encode({"a": {1, 2}})
    with json_text.for_ray(plain) as given:
        assert given is plain


def test_a_class_that_does_not_exist_is_made_whole() -> None:
    class Base(abc.ABC):
        """Documented."""

        shared: tuple[int, ...] = ()

        @abc.abstractmethod
        def see(self) -> int: ...

    class Mine(Base):
        __slots__ = ("x",)

        def see(self) -> int:
            return 5

    class Color(enum.Enum):
        RED = 1

        def twice(self) -> int:
            return 2 * int(self.value)

    Base.register(dict)
    mine = Mine()
    mine.x = 1
    raw = cloudpickle.dumps((mine, Base, Color.RED))
    code = (
        "import sys; from ray_tune_memguard.adapter.serialization import unpickling; "
        "mine, base, red = unpickling.loads(sys.stdin.buffer.read()); "
        "print(mine.x, mine.see(), base.__doc__, issubclass(dict, base), red.twice(), base.shared)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=raw, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "1 5 Documented. True 2 ()"


def test_what_making_a_class_sets_is_set_anew_where_it_does_not_exist() -> None:
    class Counted:
        def __init_subclass__(cls) -> None:
            cls.level, cls.seen = 0, []  # type: ignore[attr-defined]

    class Mine(Counted):
        pass

    class Kind(str, enum.Enum):
        A = "a"

        def __str__(self) -> str:
            return f"kind {self.value}"

    class Model(pydantic.BaseModel):
        lr: float
        layers: int

    Mine.level, Mine.seen = 7, ["x"]  # type: ignore[attr-defined]
    raw = cloudpickle.dumps(([Mine(), Mine()], Kind.A, Model(lr=0.1, layers=3)))
    code = (
        "import sys; from ray_tune_memguard.adapter.serialization import unpickling; "
        "raw = sys.stdin.buffer.read(); unpickling.loads(raw); "
        "mine, kind, model = unpickling.loads(raw); "
        "fields = list(type(model).model_fields); "
        "print(mine[1].level, mine[1].seen, kind, model.model_dump(), fields)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=raw, capture_output=True, check=True)
    said = "7 ['x'] kind a {'lr': 0.1, 'layers': 3} ['lr', 'layers']"
    assert done.stdout.decode().strip() == said


def test_other_pickles_are_read_by_pickle_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickling, "_Unpickler", None)
    assert unpickling.loads(pickle.dumps({"a": 1})) == {"a": 1}


def test_enumerations_that_exist_stay() -> None:
    class Color(enum.Enum):
        RED = 1

        def see(self) -> None:
            SEEN.append(1)

    assert read_back(Color.RED) is Color.RED
    assert Color.see.__globals__ is globals()


def test_a_class_whose_reading_was_interrupted_is_set_by_the_next_one() -> None:
    class Mine:
        def see(self) -> int:
            return 5

    raw = cloudpickle.dumps(Mine())
    code = (
        "import sys; from ray import cloudpickle; "
        "from ray_tune_memguard.adapter.serialization import unpickling; "
        "raw = sys.stdin.buffer.read(); module = cloudpickle.cloudpickle; "
        "whole = module._class_setstate\n"
        "def interrupt(*args): raise TimeoutError\n"
        "module._class_setstate = interrupt\n"
        "try: unpickling.loads(raw)\n"
        "except TimeoutError: print('interrupted')\n"
        "module._class_setstate = whole\n"
        "print(unpickling.loads(raw).see(), unpickling._unset)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=raw, capture_output=True, check=True)
    assert done.stdout.decode().split() == ["interrupted", "5", "[]"]
