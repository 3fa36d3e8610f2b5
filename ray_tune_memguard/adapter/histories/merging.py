"""Merges histories of one trial, of which each has a part, by what identifies a result."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Any

from ray.air._internal.json import SafeFallbackEncoder
from ray.air.constants import TIMESTAMP, TRAINING_ITERATION
from ray.tune.result import TIME_TOTAL_S

from ray_tune_memguard.store.histories import History
from ray_tune_memguard.store.result_values import Result

_PLAIN_KEYS = (str, int, float, bool, type(None))
_encode = SafeFallbackEncoder().encode
# Ray adds them to each result. A trial that goes back to a checkpoint repeats the iteration, and
# in its first second the time as well.
_IDENTITY = (TRAINING_ITERATION, TIMESTAMP, TIME_TOTAL_S)


def merged(stored: History, in_file: list[Result]) -> History:
    """The whole history of a trial, of which a store and a file each have a part, or all.

    What both have is the store's: one took it over from the other, or a user's own logger wrote it
    as well. The rest of the file is of runs of Ray alone. These come between the runs that wrote to
    the store, in the order of their times. A trial that began from scratch in the store has left
    behind what is older in the file.
    """
    if not in_file:
        return stored
    ids, ids_in_file = _identities(stored.results), _identities(in_file)
    known = Counter(ids)
    rest = []
    for result, identity in zip(in_file, ids_in_file, strict=True):
        known[identity] -= 1
        if known[identity] < 0:
            rest.append(result)
    if stored.results and not stored.has_earlier:
        del rest[: _count_before(_when(stored.results[0]), rest)]
    elif stored.empty_since is not None:
        del rest[: _count_before((stored.empty_since,), rest)]
    if not rest:
        return stored
    begins = sorted({min(start, len(ids)) for start in stored.starts})
    if ids_in_file[: len(ids)] == ids:
        return replace(stored, results=stored.results + rest, starts=tuple(filter(None, begins)))
    results: list[Result] = []
    starts: list[int] = []
    ends = {0, *begins, len(stored.results)}
    for begin, end in itertools.pairwise(sorted(ends)):
        count = _count_before(_when(stored.results[begin]), rest)
        if count:
            starts.append(len(results))
            results += rest[:count]
            starts.append(len(results))
            del rest[:count]
        if begin in begins:
            starts.append(len(results))
        results += stored.results[begin:end]
    if rest:
        starts.append(len(results))
        results += rest
    return replace(stored, results=results, starts=tuple(dict.fromkeys(filter(None, starts))))


def joined(one: History, other: History) -> History:
    """The whole history of a trial, of which two stores each have a part, or all.

    Both go on from what they have in common. If the later one began the trial from scratch, what
    the earlier one has of it is left behind.
    """
    if not (one.results and other.results):
        return one if one.results else other
    ids, other_ids = _identities(one.results), _identities(other.results)
    if ids[: len(other_ids)] == other_ids:
        return one
    if other_ids[: len(ids)] == ids:
        return other
    later, earlier = one, other
    if _when(other.results[0]) > _when(one.results[0]):
        later, earlier = other, one
    has_earlier = later.has_earlier and earlier.has_earlier
    return replace(merged(later, earlier.results), has_earlier=has_earlier)


def are_the_same(one: list[Result], other: list[Result]) -> bool:
    """Whether two histories of a trial are of the same results."""
    return len(one) == len(other) and _identities(one) == _identities(other)


def _identities(results: list[Result]) -> list[bytes]:
    return list(map(_identity, results))


def _identity(result: Result) -> bytes:
    """What tells a result from all others of its trial, also if other callbacks added to one."""
    found = {key: result[key] for key in _IDENTITY if key in result}
    return as_lines([found if len(found) == len(_IDENTITY) else result])


def _count_before(when: tuple[float, ...], results: list[Result]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda one: _when(one) < when, results))


def _when(result: Result) -> tuple[float, ...]:
    """When a result was reported: Ray's full second, and its iteration. Unknown is last."""
    found = (result.get(key) for key in (TIMESTAMP, TRAINING_ITERATION))
    return tuple(one if isinstance(one, (int, float)) else math.inf for one in found)


def with_plain_keys(value: Any) -> Any:
    """A value with texts for keys that JSON does not take, where Ray's JSON logger fails."""
    if isinstance(value, dict):
        return {
            key if isinstance(key, _PLAIN_KEYS) else str(key): with_plain_keys(inner)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(map(with_plain_keys, value))
    return value


def as_lines(results: list[Result]) -> bytes:
    """Results as the lines that Ray's logger writes."""
    try:
        return "".join(f"{_encode(result)}\n" for result in results).encode()
    except TypeError:
        plain = map(with_plain_keys, results)
        return "".join(f"{_encode(result)}\n" for result in plain).encode()
