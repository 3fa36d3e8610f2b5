"""From the record of a run to a number: with pandas, of its samples and experiment checkpoints.

:func:`read` understands what ``scenarios`` has in its tables: ``fit_s / at_end finished``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

#: What one baseline did once, as a child program wrote it down.
Record: TypeAlias = dict[str, Any]
#: The records of the baselines that ran with the same seed, one after the other.
Round: TypeAlias = dict[str, Record]
Points: TypeAlias = list[tuple[float, float]]

#: What a sample has, as far as it goes.
SAMPLE = ["finished", "results", "rss", "seconds", "store", "in_use", "slack", "blocks"]
#: `hundred-thousand`: so many trials are finished when the driver's memory has its level.
LEVEL_AT = 1000
#: `overhead`: the tracker's looks come in the first 500 trials; what counts is the sweep after.
WARM_UP = 600
#: `restore`: the steps in which MemGuard opens what Ray left.
RAYS = {"first": "Ray's, first", "again": "Ray's, again", "after": "Ray's, after that"}


def read(reading: str, record: Record, one: Round) -> Any:
    """Read a number of a record.

    Args:
        reading: terms with ``-`` or ``/`` between them. A term is the name of a function of
            this module with its arguments, or keys of the record with ``:`` between them. With
            ``of BASELINE`` before it, it is read of that baseline's record.
        record: of one baseline.
        one: the round that it is from.
    """
    first, *rest = re.split(r" ([-/]) ", reading)
    result = _term(first, record, one)
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        other = _term(term, record, one)
        result = result - other if operator == "-" else result / other
    return result


def _term(term: str, record: Record, one: Round) -> Any:
    head, *arguments = term.split()
    if head == "of":
        return _term(" ".join(arguments[1:]), one[arguments[0]], one)
    function = globals().get(head)
    return function(record, *arguments) if callable(function) else value(record, term)


def value(record: Record, keys: str) -> Any:
    """Return what the record has at the end of some keys, with ``:`` between them."""
    found: Any = record
    for key in keys.split(":"):
        found = found[key]
    # What a reporter did not say.
    return float("nan") if found is None else found


def samples(record: Record) -> pd.DataFrame:
    """Return the samples, one a row."""
    return pd.DataFrame(record["samples"]).set_axis(SAMPLE[: len(record["samples"][0])], axis=1)


def checkpoints(record: Record) -> pd.DataFrame:
    """Return the experiment checkpoints, one a row."""
    return pd.DataFrame(record["checkpoints"])


def line_slope(x: Any, y: Any) -> float:
    """Return the least-squares slope of ``y`` over ``x``."""
    return float(np.polyfit(np.asarray(x, float), np.asarray(y, float), 1)[0])


def slope(record: Record, y: str, x: str, last: str = "0.75") -> float:
    """Return the slope of a column of the samples over another one, in the last part of it."""
    frame = samples(record)
    part = frame[frame[x] >= frame[x].iloc[-1] * (1 - float(Fraction(last)))]
    return line_slope(part[x], part[y])


def highest(record: Record, column: str) -> float:
    """Return the highest value that was sampled."""
    return float(samples(record)[column].max())


def at_end(record: Record, column: str) -> float:
    """Return the last value that was sampled, at the end of the tuning loop."""
    return float(samples(record)[column].iloc[-1])


def drawn(x: str, y: str, unit: float) -> Callable[[Record], Points]:
    """Return what reads points of two columns of the samples, the second one in ``unit``."""

    def points(record: Record) -> Points:
        frame = samples(record)
        return list(zip(frame[x], frame[y] / unit, strict=True))

    return points


def trial_milliseconds(record: Record, parts: int = 60) -> Points:
    """Return points of (finished trials, ms per trial), means over parts of the sweep."""
    frame = samples(record)
    marks = frame.iloc[:: max(1, (len(frame) - 1) // parts)]
    steps = marks[["finished", "seconds"]].diff()
    each = 1e3 * steps["seconds"] / steps["finished"]
    is_there = steps["finished"] > 0
    return list(zip(marks["finished"][is_there], each[is_there], strict=True))


def median(record: Record, key: str) -> float:
    """Return the median of a list in the record."""
    return float(pd.Series(value(record, key)).median())


def ninety_nine(record: Record, key: str) -> float:
    """Return the 99th percentile of a list in the record."""
    return float(pd.Series(value(record, key)).quantile(0.99))


def largest(record: Record, *keys: str) -> float:
    """Return the largest value of some lists in the record."""
    return float(max(max(record[key]) for key in keys))


def count(record: Record, key: str) -> int:
    """Return the length of a list in the record."""
    return len(record[key])


# Large sweeps.


def level(record: Record) -> float:
    """Return RSS at trial ``LEVEL_AT``."""
    frame = samples(record)
    return float(frame["rss"][frame["finished"] >= LEVEL_AT].iloc[0])


def rise(record: Record) -> float:
    """Return how much RSS rises above that."""
    return max(highest(record, "rss"), float(record["rss_after_fit"])) - level(record)


def throughput(record: Record, start: str, end: str) -> float:
    """Return the trials per second between two points of the sweep, as parts of its trials."""
    frame = samples(record)
    total = frame["finished"].iloc[-1]
    inside = frame[frame["finished"].between(float(start) * total, float(end) * total)]
    steps = inside[["finished", "seconds"]].iloc[[0, -1]].diff().iloc[-1]
    return float(steps["finished"] / steps["seconds"])


def _checkpoint(record: Record, start: float, end: float) -> float:
    """Return the median seconds of one experiment checkpoint that came in its turn.

    Between two numbers of finished trials; if the sweep was too short for any, of the forced one
    at its end, which finds less that is new.
    """
    frame = checkpoints(record)
    in_turn = frame[frame["finished"].between(start, end) & ~frame["forced"]]
    found = frame.iloc[-1:] if in_turn.empty else in_turn
    return float(found["save_s"].median())


def early_checkpoint(record: Record) -> float:
    """Return the seconds of a checkpoint in the first thousands of trials."""
    return _checkpoint(record, LEVEL_AT / 2, 5 * LEVEL_AT)


def late_checkpoint(record: Record) -> float:
    """Return the seconds of a checkpoint near the end."""
    total = at_end(record, "finished")
    return _checkpoint(record, 0.95 * total, total)


def last_checkpoint(record: Record, column: str) -> float:
    """Return a column of the final checkpoint, which is written when every trial has finished."""
    return float(checkpoints(record)[column].iloc[-1])


def after_loop(record: Record) -> float:
    """Return the seconds of ``fit()`` after its last step, without the last upload."""
    loop = record["before_loop_s"] + at_end(record, "seconds")
    return float(record["fit_s"] - loop - last_checkpoint(record, "total_s"))


# Uploads.


def _uploads(record: Record) -> pd.DataFrame:
    """Return the checkpoints, with the bytes that each uploaded: all until the next one came."""
    frame = checkpoints(record)
    return frame.assign(sent=frame["bytes"].shift(-1, fill_value=record["sent"]) - frame["bytes"])


def upload(record: Record, start: str, end: str) -> float:
    """Return the mean upload between two points of the sweep, as parts of its trials, if any."""
    frame, total = _uploads(record), at_end(record, "finished")
    is_there = frame["finished"].between(float(start) * total, float(end) * total) & ~frame["last"]
    return float(frame["sent"][is_there].mean())


def last_upload(record: Record) -> float:
    """Return the bytes of the upload at the end."""
    return float(_uploads(record)["sent"].iloc[-1])


def upload_points(record: Record) -> Points:
    """Return points of (finished trials, MB of one upload)."""
    frame = _uploads(record)
    frame = frame[~frame["last"]]
    return list(zip(frame["finished"], frame["sent"] / 1e6, strict=True))


# The rest.


def opening(record: Record, when: str, key: str) -> float:
    """Return what MemGuard took to open what Ray left; Ray alone knows one way to do so."""
    return float(record.get(RAYS[when], record["analysis"])[key])


def true_slope(record: Record) -> float:
    """Return the bytes per trial that a process of the head grew by, after the warm-up."""
    frame = pd.DataFrame(record["truth"], columns=["finished", "rss"])
    last = frame["finished"].iloc[-1]
    frame = frame[frame["finished"] >= max(100 if last >= 300 else 0, 0.2 * last)]
    return line_slope(frame["finished"], frame["rss"])


def beyond_a_quarter(record: Record) -> float:
    """Return by how many bytes the reporter's slope is off by more than 25 % and 500 bytes."""
    slope = true_slope(record)
    return abs(float(value(record, "per_trial")) - slope) - max(0.25 * abs(slope), 500.0)


def error_of_leak(record: Record, left: str) -> float:
    """Return how far the reporter's slope is off what trials leave, as a share of it."""
    return abs(float(value(record, "per_trial")) - float(left)) / float(left)


def bytes_each(record: Record, *kinds: str) -> float:
    """Return the bytes per trial of some kinds of files."""
    sizes = record["outcome"]["bytes"]
    return sum(sizes.get(kind, 0) for kind in kinds) / float(record["outcome"]["rows"])


def keep_by_put_and_copy(record: Record) -> float:
    """Return the time of ``keep`` by that of ``ray.put`` and a copy, of medians."""
    times = {name: median(record, f"times:{name}") for name in ("ray.put", "copy", "keep")}
    return times["keep"] / (times["ray.put"] + times["copy"])


def of_kills(record: Record, column: str) -> int:
    """Return the total of what was counted after each kill."""
    return int(pd.DataFrame(record["kills"])[column].sum())


# Claims: what is said of a run, and whether that is what it should be.

Verdict: TypeAlias = tuple[str, bool]


def differences(record: Record, rays: Record) -> list[str]:
    """Return the names of the parts in which results differ from Ray's."""
    ours, theirs = record["outcome"], rays["outcome"]
    return [name for name in theirs if theirs[name] != ours[name]]


def finished(record: Record, _: Record) -> Verdict:
    """So many trials have finished."""
    return f"{at_end(record, 'finished'):,.0f}", True


def same_results(record: Record, rays: Record) -> Verdict:
    """It returned what Ray did: count, errors, best, DataFrame, single results."""
    total, different = record["outcome"]["len"], differences(record, rays)
    said = f"differ: {', '.join(different)}" if different else "equal"
    return f"{total:,}, {said}", not different


def histories(record: Record, _: Record) -> Verdict:
    """Results have their history."""
    found = record["outcome"]["results"]
    return f"{found['histories']} of {found['read']}", True


def same_rows(record: Record, rays: Record) -> Verdict:
    """The DataFrame has the same rows as Ray's, in any order."""
    ours, theirs = (one["outcome"]["dataframe"] for one in (record, rays))
    if ours["sha256_in_any_order"] == theirs["sha256_in_any_order"]:
        return "yes", True
    return f"no: {ours['rows']:,} rows, {len(ours['columns'])} columns", False


def same_console(record: Record, rays: Record) -> Verdict:
    """The console ended with the same count as Ray's."""
    return str(record["console"]), record["console"] == rays["console"]


def opened(record: Record, rays: Record) -> Verdict:
    """Ray alone reads and resumes what was left, and the same trial is best."""
    read, resumed = record["opened"]["read"], record["opened"]["resume"]
    is_whole = read["trials"] == resumed["trials"] == record["outcome"]["len"]
    is_best = read["best"] == rays["opened"]["read"]["best"]
    said = f"{read['trials']:,} trials, {resumed['run_again']} run again"
    return said, is_whole and is_best and resumed["run_again"] == 0


def restored(record: Record, _: Record) -> Verdict:
    """``Tuner.restore`` works where MemGuard is not installed."""
    tuner = record["opened"]["tuner"]
    return "yes" if tuner["restored"] else str(tuner["error"]), tuner["restored"]


def named(record: Record, _: Record) -> Verdict:
    """A reporter has named a growth."""
    return "named" if record["lines"] else "not named", bool(record["lines"])


def not_named(record: Record, _: Record) -> Verdict:
    """A reporter has named none."""
    said, is_named = named(record, _)
    return said, not is_named


def whole(record: Record, _: Record) -> Verdict:
    """All results of all trials are in the DataFrame and in a history."""
    outcome = record["outcome"]
    expected = at_end(record, "finished"), at_end(record, "results")
    found = outcome["rows"], outcome["rows"] * outcome["history"]
    return f"{found[0]:,} trials, {found[1]:,} results", found == expected


def read_of_put(record: Record, _: Record) -> Verdict:
    """Arrays that were stored with ``ray.put`` can be read."""
    return _outcomes(record["read"]["Ray alone"])


def read_of_keeper(record: Record, _: Record) -> Verdict:
    """Arrays that were kept can be read."""
    return _outcomes(record["read"]["Keeper"])


def _outcomes(found: dict[str, int]) -> Verdict:
    return ", ".join(f"{n} {what}" for what, n in sorted(found.items())), set(found) == {"read"}
