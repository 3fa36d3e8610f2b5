"""The benchmarks: what each one runs, what it reads from the runs, and the bar it is held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.picture import Panel
from benchmarks.record import FINISHED, RESULTS, RSS, STORE, Pair, Run
from benchmarks.rows import (
    Bar,
    Check,
    Row,
    factor,
    figure,
    mebibytes,
    per_second,
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
    evaluate: Callable[[list[Pair]], list[Row]]
    panel: Panel
    title: str

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
    reopen: bool = False


def _evaluate_reused(pairs: list[Pair]) -> list[Row]:
    def after_collection(run: Run) -> float:
        return run.record["rss_after_gc"] - run.samples[-1][RSS]

    return [
        figure(
            "RSS per trial, last 3/4 of the trials",
            plain_bytes,
            pairs,
            lambda run: run.slope(RSS, FINISHED, 0.75),
            Bar(1 * KB),
        ),
        figure("RSS at the loop's end", mebibytes, pairs, lambda run: run.samples[-1][RSS]),
        figure("RSS, highest sample", mebibytes, pairs, lambda run: run.highest(RSS)),
        figure("fit() adds", mebibytes, pairs, lambda run: run.fit_growth, Bar(10 * MB)),
        figure("fit() adds, after gc.collect()", mebibytes, pairs, after_collection),
        figure(
            "RSS once everything has been read",
            mebibytes,
            pairs,
            lambda run: run.record["rss_after_read_all"],
        ),
        same_results(pairs),
    ]


def _evaluate_fresh(pairs: list[Pair]) -> list[Row]:
    return [
        figure(
            "RSS per trial, last 2/3 of the trials",
            plain_bytes,
            pairs,
            lambda run: run.slope(RSS, FINISHED, 2 / 3),
            Bar(5 * KB),
        ),
        figure("RSS at the loop's end", mebibytes, pairs, lambda run: run.samples[-1][RSS]),
        figure("RSS, highest sample", mebibytes, pairs, lambda run: run.highest(RSS)),
        same_results(pairs),
    ]


def _evaluate_many_results(pairs: list[Pair]) -> list[Row]:
    return [
        figure(
            "RSS per result, last 3/4 of the results",
            plain_bytes,
            pairs,
            lambda run: run.slope(RSS, RESULTS, 0.75),
            Bar(200),
        ),
        figure("RSS at the trial's end", mebibytes, pairs, lambda run: run.samples[-1][RSS]),
        same_results(pairs),
    ]


def _evaluate_large_results(pairs: list[Pair]) -> list[Row]:
    return [
        figure(
            "object store per result, last 3/4 of the results",
            plain_bytes,
            pairs,
            lambda run: run.slope(STORE, RESULTS, 0.75),
            Bar(2 * KB),
        ),
        figure(
            "object store, highest",
            mebibytes,
            pairs,
            lambda run: run.highest(STORE),
        ),
        same_results(pairs),
    ]


def _evaluate_simulated(pairs: list[Pair]) -> list[Row]:
    def early(run: Run) -> float:
        return run.trials_per_second(0.05, 0.15)

    def late(run: Run) -> float:
        return run.trials_per_second(0.90, 1.00)

    return [
        figure(
            "RSS per trial, last 9/10 of the trials",
            plain_bytes,
            pairs,
            lambda run: run.slope(RSS, FINISHED, 0.9),
            Bar(200),
        ),
        figure("throughput, 5 % to 15 % of the trials", per_second, pairs, early),
        figure("throughput, last 10 % of the trials", per_second, pairs, late),
        figure(
            "throughput, late by early",
            factor,
            pairs,
            lambda run: late(run) / early(run),
            Bar(0.9, at_least=True),
        ),
        figure(
            "one experiment checkpoint, slowest of the last 10 %",
            seconds,
            pairs,
            lambda run: max(run.late_checkpoints("save_s")),
            Bar(0.1),
        ),
        figure(
            "the same with its upload, slowest",
            seconds,
            pairs,
            lambda run: max(run.late_checkpoints("total_s")),
        ),
        figure(
            "experiment state file, at the end",
            mebibytes,
            pairs,
            lambda run: run.late_checkpoints("state_bytes")[-1],
        ),
        figure(
            "all files beside the trials', at the end",
            mebibytes,
            pairs,
            lambda run: run.record["bytes_beside_trials"],
        ),
        figure("RSS, highest sample", mebibytes, pairs, lambda run: run.highest(RSS)),
        figure("fit() adds", mebibytes, pairs, lambda run: run.fit_growth),
        same_results(pairs),
        *_evaluate_opened(pairs),
    ]


def _evaluate_opened(pairs: list[Pair]) -> list[Row]:
    """Judge what was left behind, as Ray alone opens it."""

    def describe(run: Run) -> str:
        opened = run.record["opened"]
        return f"{opened['read']['trials']:,} trials, {opened['resume']['run_again']} run again"

    def complete(run: Run) -> bool:
        trials, opened = run.record["outcome"]["len"], run.record["opened"]
        counts = opened["read"]["trials"] == opened["resume"]["trials"] == trials
        return counts and opened["resume"]["run_again"] == 0

    def same_best(pair: Pair) -> bool:
        ray, memguard = pair.ray.record["opened"], pair.memguard.record["opened"]
        return ray["read"]["best"] == memguard["read"]["best"]

    def restored(run: Run) -> str:
        tuner = run.record["opened"]["tuner"]
        return "yes" if tuner["restored"] else tuner["error"]

    return [
        Check(
            "Ray alone reads and resumes it, the same trial is best",
            [describe(pair.ray) for pair in pairs],
            [describe(pair.memguard) for pair in pairs],
            holds=all(complete(pair.memguard) and same_best(pair) for pair in pairs),
        ),
        Check(
            "Tuner.restore works where MemGuard is not installed",
            [restored(pair.ray) for pair in pairs],
            [restored(pair.memguard) for pair in pairs],
            holds=all(pair.memguard.record["opened"]["tuner"]["restored"] for pair in pairs),
            is_bar=False,
        ),
    ]


def _evaluate_wallclock(pairs: list[Pair]) -> list[Row]:
    bar = Bar(1.03, of_ratio=True)
    return [
        figure("fit()", seconds, pairs, lambda run: run.fit_seconds, bar),
        figure("the tuning loop", seconds, pairs, lambda run: run.loop_seconds),
        figure(
            "fit() and reading all results", seconds, pairs, lambda run: run.fit_and_read_seconds
        ),
        same_results(pairs),
    ]


_RSS_BY_TRIAL = Panel("finished trials", "driver RSS, MiB", FINISHED, RSS, MIB)
_RSS_BY_RESULT = Panel("results", "driver RSS, MiB", RESULTS, RSS, MIB)
_STORE_BY_RESULT = Panel("results", "object store, MiB", RESULTS, STORE, MIB)

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
            ),
        ),
    ),
    "simulated": Benchmark(
        "simulated actors, default loggers",
        (Leg(Sweep("simulated", 10_000), _evaluate_simulated, _RSS_BY_TRIAL, "simulated actors"),),
        reopen=True,
    ),
    "wallclock": Benchmark(
        "wall-clock of real trials, reuse_actors=True",
        (Leg(Sweep("reused", 1500), _evaluate_wallclock, _RSS_BY_TRIAL, "reused actors"),),
    ),
}
