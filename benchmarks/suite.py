"""The benchmarks: what each one runs, what it reads from the runs, and the bar it is held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.picture import Panel, columns
from benchmarks.record import FINISHED, RESULTS, RSS, STORE, Round, Run
from benchmarks.rivals import MEMGUARD, RAY, RIVALS, TWO
from benchmarks.rows import (
    Bar,
    Check,
    Row,
    by_rival,
    figure,
    mebibytes,
    plain_bytes,
    same_results,
    seconds,
)
from benchmarks.runs import Sweep

MIB = 2**20
MB = 1_000_000
KB = 1000
QUICK = 0.05
QUICK_LEAST = 40


@dataclass(frozen=True)
class Leg:
    """One kind of sweep in a benchmark, and how its runs are read."""

    sweep: Sweep
    evaluate: Callable[[list[Round]], list[Row]]
    panel: Panel
    title: str
    rivals: tuple[str, ...] = tuple(RIVALS)
    #: Whether what it left is then opened in a process without MemGuard.
    reopen: bool = False

    def resized(self, total: int) -> Leg:
        """Return the leg with another number of trials, or of results where those are counted."""
        every = min(self.sweep.sample_every, max(1, total // 20))
        if self.sweep.sample_unit == "trials":
            return replace(self, sweep=replace(self.sweep, trials=total, sample_every=every))
        return replace(self, sweep=replace(self.sweep, results_per_trial=total, sample_every=every))

    def quick(self) -> Leg:
        """Return the leg at a twentieth of its size."""
        return self.resized(max(QUICK_LEAST, round(self.sweep.total * QUICK)))


@dataclass(frozen=True)
class Benchmark:
    """A named set of legs."""

    title: str
    legs: tuple[Leg, ...]


def _evaluate_reused(rounds: list[Round]) -> list[Row]:
    def after_collection(run: Run) -> float:
        return run.record["rss_after_gc"] - run.samples[-1][RSS]

    return [
        figure(
            "RSS per trial, last 3/4 of the trials",
            plain_bytes,
            rounds,
            lambda run: run.slope(RSS, FINISHED, 0.75),
            Bar(1 * KB),
        ),
        figure("RSS at the loop's end", mebibytes, rounds, lambda run: run.samples[-1][RSS]),
        figure("RSS, highest sample", mebibytes, rounds, lambda run: run.highest(RSS)),
        figure("fit() adds", mebibytes, rounds, lambda run: run.fit_growth, Bar(10 * MB)),
        figure("fit() adds, after gc.collect()", mebibytes, rounds, after_collection),
        figure(
            "RSS once everything has been read",
            mebibytes,
            rounds,
            lambda run: run.record["rss_after_read_all"],
        ),
        same_results(rounds),
    ]


def _evaluate_fresh(rounds: list[Round]) -> list[Row]:
    return [
        figure(
            "RSS per trial, last 2/3 of the trials",
            plain_bytes,
            rounds,
            lambda run: run.slope(RSS, FINISHED, 2 / 3),
            Bar(5 * KB),
        ),
        figure("RSS at the loop's end", mebibytes, rounds, lambda run: run.samples[-1][RSS]),
        figure("RSS, highest sample", mebibytes, rounds, lambda run: run.highest(RSS)),
        same_results(rounds),
    ]


def _evaluate_many_results(rounds: list[Round]) -> list[Row]:
    return [
        figure(
            "RSS per result, last 3/4 of the results",
            plain_bytes,
            rounds,
            lambda run: run.slope(RSS, RESULTS, 0.75),
            Bar(200),
        ),
        figure("RSS at the trial's end", mebibytes, rounds, lambda run: run.samples[-1][RSS]),
        same_results(rounds),
    ]


def _evaluate_large_results(rounds: list[Round]) -> list[Row]:
    return [
        figure(
            "object store per result, last 3/4 of the results",
            plain_bytes,
            rounds,
            lambda run: run.slope(STORE, RESULTS, 0.75),
            Bar(2 * KB),
        ),
        figure(
            "object store, highest",
            mebibytes,
            rounds,
            lambda run: run.highest(STORE),
        ),
        same_results(rounds),
    ]


def _evaluate_opened(rounds: list[Round]) -> list[Row]:
    """Judge what was left behind, as Ray alone opens it."""

    def describe(run: Run) -> str:
        opened = run.record["opened"]
        return f"{opened['read']['trials']:,} trials, {opened['resume']['run_again']} run again"

    def complete(run: Run) -> bool:
        trials, opened = run.record["outcome"]["len"], run.record["opened"]
        counts = opened["read"]["trials"] == opened["resume"]["trials"] == trials
        return counts and opened["resume"]["run_again"] == 0

    def same_best(one: Round) -> bool:
        ray, memguard = (one.runs[name].record["opened"] for name in TWO)
        return ray["read"]["best"] == memguard["read"]["best"]

    def restored(run: Run) -> str:
        tuner = run.record["opened"]["tuner"]
        return "yes" if tuner["restored"] else tuner["error"]

    return [
        Check(
            "Ray alone reads and resumes it, the same trial is best",
            by_rival(rounds, describe),
            holds=all(complete(one.runs[MEMGUARD]) and same_best(one) for one in rounds),
        ),
        Check(
            "Tuner.restore works where MemGuard is not installed",
            by_rival(rounds, restored),
            holds=all(one.runs[MEMGUARD].record["opened"]["tuner"]["restored"] for one in rounds),
            is_bar=False,
        ),
    ]


def _evaluate_losses(rounds: list[Round]) -> list[Row]:
    """Say what is missing at the end of a sweep."""

    def histories(run: Run) -> str:
        found = run.record["outcome"]["results"]
        return f"{found['histories']} of {found['read']}"

    def console(run: Run) -> str:
        return str(run.record["console"])

    consoles = by_rival(rounds, console)

    def same_rows(one: Round, name: str) -> str:
        ray, other = (one.runs[rival].record["outcome"]["dataframe"] for rival in (RAY, name))
        same = ray["sha256_in_any_order"] == other["sha256_in_any_order"]
        return "yes" if same else f"no: {other['rows']:,} rows, {len(other['columns'])} columns"

    rows = {name: [same_rows(one, name) for one in rounds] for name in rounds[0].runs}
    return [
        Check("results with their history", by_rival(rounds, histories), holds=True, is_bar=False),
        same_results(rounds),
        Check("the same DataFrame, but for its order", rows, holds=set(rows[MEMGUARD]) == {"yes"}),
        Check(
            "the console's last count",
            consoles,
            holds=consoles[MEMGUARD] == consoles[RAY],
        ),
        *_evaluate_opened(rounds),
    ]


def _evaluate_memory_and_time(rounds: list[Round]) -> list[Row]:
    return [
        figure(
            "RSS per trial, last 3/4 of the trials",
            plain_bytes,
            rounds,
            lambda run: run.slope(RSS, FINISHED, 0.75),
        ),
        figure("RSS, highest sample", mebibytes, rounds, lambda run: run.highest(RSS)),
        figure("fit()", seconds, rounds, lambda run: run.fit_seconds),
        same_results(rounds),
    ]


_RSS_BY_TRIAL = Panel("finished trials", "driver RSS, MiB", columns(FINISHED, RSS, MIB))
_RSS_BY_RESULT = Panel("results", "driver RSS, MiB", columns(RESULTS, RSS, MIB))
_STORE_BY_RESULT = Panel("results", "object store, MiB", columns(RESULTS, STORE, MIB))
BENCHMARKS = {
    "reused": Benchmark(
        "real trials, reuse_actors=True",
        (Leg(Sweep("reused", 4000), _evaluate_reused, _RSS_BY_TRIAL, "reused actors"),),
    ),
    "fresh": Benchmark(
        "real trials, a fresh actor each",
        (Leg(Sweep("fresh", 300), _evaluate_fresh, _RSS_BY_TRIAL, "fresh actors"),),
    ),
    "results": Benchmark(
        "one trial with many results",
        (
            Leg(
                Sweep("fresh", 1, 8000, sample_every=50, sample_unit="results"),
                _evaluate_many_results,
                _RSS_BY_RESULT,
                "one scalar per result",
                TWO,
            ),
            Leg(
                Sweep(
                    "fresh",
                    1,
                    2000,
                    payload_kb=200,
                    sample_every=50,
                    sample_unit="results",
                    loggers=False,
                    verbose_level=0,
                ),
                _evaluate_large_results,
                _STORE_BY_RESULT,
                "200 KB per result, no loggers",
                TWO,
            ),
        ),
    ),
    "carried": Benchmark(
        "a trainable that carries 20 MB in its closure, reuse_actors=True",
        (
            Leg(
                Sweep("reused", 200, carried_mb=20),
                _evaluate_memory_and_time,
                _RSS_BY_TRIAL,
                "reused actors",
                TWO,
            ),
        ),
    ),
    "losses": Benchmark(
        "what is missing afterwards, simulated actors",
        (
            Leg(
                Sweep("simulated", 300),
                _evaluate_losses,
                _RSS_BY_TRIAL,
                "simulated actors",
                reopen=True,
            ),
        ),
    ),
}
