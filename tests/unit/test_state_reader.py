from __future__ import annotations

import io
import json
import random
from typing import Any

import pytest

from ray_tune_memguard.store import state_reader
from ray_tune_memguard.store.state_reader import StateReader, is_complete


def state(entries: list[Any]) -> bytes:
    return json.dumps({"trial_data": entries, "runner_data": {"x": [1]}, "stats": 7}).encode()


def read(content: bytes) -> tuple[list[Any], dict[str, Any]]:
    reader = StateReader(io.BytesIO(content).read)
    entries = []
    for entry, text in reader.records():
        assert json.loads(text) == entry
        entries.append(entry)
    return entries, json.loads(reader.rest())


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("count", [0, 1, 30])
def test_entries_and_the_rest(monkeypatch: pytest.MonkeyPatch, chunk: int, count: int) -> None:
    monkeypatch.setattr(state_reader, "_CHUNK_BYTES", chunk)
    chance = random.Random(count)
    entries = [
        [json.dumps({"id": n, "text": '"],[é\\' * chance.randrange(20)}), "{}"]
        for n in range(count)
    ]
    for content in (
        state(entries),
        json.dumps(json.loads(state(entries)), ensure_ascii=False).encode(),
    ):
        found, rest = read(content)
        assert found == entries
        assert rest == {"trial_data": [], "runner_data": {"x": [1]}, "stats": 7}


def test_progress_counts_all_bytes() -> None:
    content = state([["a", "b"]] * 100)
    told: list[int] = []
    reader = StateReader(io.BytesIO(content).read, told.append)
    assert sum(1 for _ in reader.records()) == 100
    reader.rest()
    assert sum(told) == len(content)


@pytest.mark.parametrize("length", [0, 5, 20, 60])
def test_a_torn_file_is_a_value_error(length: int) -> None:
    with pytest.raises(ValueError, match=r"begin with|ends in the middle"):
        read(state([["a", "b"]] * 100)[:length])


def test_another_file_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="It does not begin with"):
        read(b'{"runner_data": {}}')


@pytest.mark.parametrize("seed", range(40))
def test_a_corrupt_file_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(state_reader, "_CHUNK_BYTES", 1000)
    chance = random.Random(seed)
    entry = [json.dumps({"id": 7, "config": {"x": "é" * 20}}), json.dumps({"y": [1.5, None]})]
    content = bytearray(state([entry] * 1000))
    at = chance.randrange(len(content) // 4, len(content) // 2)
    garbage = chance.choice([b"\0" * 50, b'"', b"]", b"[", b"}", b",", b"\\", b"x", b"\xff"])
    content[at : at + len(garbage)] = garbage
    file = io.BytesIO(content)
    reader = StateReader(file.read)
    try:
        count = sum(1 for _ in reader.records())
        json.loads(reader.rest())
    except ValueError:
        assert file.tell() < at + 20_000
        assert file.tell() < len(content) // 2 + 20_000
    else:
        assert count == 1000  # What it changed is still JSON.


#: Of Ray alone, of a run with a trial store, with blanks, and with other members.
COMPLETE = [
    state([[json.dumps({"stats": {}}), "{}"]] * 20),
    state([["a", "b"]] * 20)[:-1] + b', "memguard": {"store": "/somewhere"}}',
    json.dumps(json.loads(state([["a", "b"]] * 3)), indent=2).encode() + b"\n",
    json.dumps({"trial_data": [["a", "b"]], "new": {"stats": {"x": {}}}}).encode(),
    b'{"other layout": {}}',
]


@pytest.mark.parametrize("content", COMPLETE)
@pytest.mark.parametrize("end_bytes", [2, 60, 1 << 16])
def test_a_state_file_that_is_cut_anywhere_is_not_complete(
    monkeypatch: pytest.MonkeyPatch, content: bytes, end_bytes: int
) -> None:
    monkeypatch.setattr(state_reader, "_END_BYTES", end_bytes)
    assert is_complete(io.BytesIO(content))
    for length in range(len(content.rstrip())):
        assert not is_complete(io.BytesIO(content[:length])), length


def test_that_a_state_file_is_complete_is_seen_at_its_end() -> None:
    class Counted(io.BytesIO):
        count = 0

        def read(self, size: int | None = -1, /) -> bytes:
            block = super().read(size)
            self.count += len(block)
            return block

    file = Counted(state([["a" * 10_000, "b"]] * 100))
    assert is_complete(file)
    assert file.count < 100_000
