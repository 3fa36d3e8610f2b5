"""Kill the driver of a sweep, restore it, see what was lost: ``python -m tests.acceptance kills``.

Each run starts a sweep of real trials in a process of its own, kills it with SIGKILL at a random
moment or at a chosen one (``--aim``), restores it in another process with ``Tuner.restore`` and
runs it to its end. Ray alone does the same in the same command, taking turns. Writes ``kills.json``
and ``kills.png`` to ``docs/results/``. Ends with 1 if a run with MemGuard lost, doubled or
changed a result, could not be restored or says nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.baselines import BASELINES, TWO
from benchmarks.machine import describe_machine, machine_line
from benchmarks.report import format_lines, if_possible, new_picture
from benchmarks.runner import RESULTS_DIRECTORY, Progress, in_turn
from tests.acceptance.kill_hooks import AIMS, MEMGUARD_ONLY
from tests.acceptance.kill_runs import SETTLED_SECONDS, Outcome, Plan, kill_and_restore

NAMES = {"ray": "Ray alone", "memguard": "MemGuard"}
TRIALS = {"variants": 1200, "optuna": 300}
#: Ray's own period is 10 s at least; small sweeps are over by then.
AIMED_CHECKPOINT_SECONDS = 1.0
#: A sweep of 1,200 trials takes less than a minute here.
SECONDS_PER_TRIAL = 0.4
LEAST_TIMEOUT = 120.0


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, as {value} is")
    return value


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance kills", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--runs", type=_count, default=5, help="runs of each rival (5)")
    parser.add_argument("--ray-runs", type=_count, help="runs of Ray alone (default: --runs)")
    parser.add_argument("--rivals", nargs="+", choices=TWO, default=list(TWO))
    parser.add_argument("--trials", type=_count, help="trials of a sweep (1,200; optuna: 300)")
    parser.add_argument("--searcher", choices=tuple(TRIALS), default="variants")
    parser.add_argument(
        "--aim",
        nargs="+",
        choices=("random", *AIMS),
        default=["random"],
        help="random moments, or the instants of what is named, in turn, --runs times each",
    )
    parser.add_argument(
        "--checkpoint-seconds", type=float, help="TUNE_GLOBAL_CHECKPOINT_S (1 if aimed)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the sweeps")
    parser.add_argument("--timeout", type=float, help="seconds that a driver may take")
    parser.add_argument("--storage", type=Path, help="where the sweeps write; short, local disk")
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY, help="where figures go")
    arguments = parser.parse_args(argv)
    arguments.trials = arguments.trials or TRIALS[arguments.searcher]
    arguments.timeout = arguments.timeout or max(
        LEAST_TIMEOUT, SECONDS_PER_TRIAL * arguments.trials
    )
    return arguments


def _aims(aim: str) -> list[str]:
    return [""] if aim == "random" else [f"{aim}:{instant}" for instant in AIMS[aim]]


def make_plans(arguments: argparse.Namespace) -> Iterator[Plan]:
    """Make the plans in the order in which they are carried out: the rivals take turns.

    Both of a turn have the same sweep and are killed at the same share of it.
    """
    runs = dict.fromkeys(arguments.rivals, arguments.runs)
    if "ray" in runs and arguments.ray_runs is not None:
        runs["ray"] = arguments.ray_runs
    turn = 0
    for aim in (aim for target in arguments.aim for aim in _aims(target)):
        for run in range(max(runs.values())):
            seed = arguments.seed * 10_000 + turn
            share = random.Random(seed).uniform(*((0.2, 0.8) if aim else (0.0, 1.0)))
            checkpoint_seconds = arguments.checkpoint_seconds
            if checkpoint_seconds is None and aim:
                checkpoint_seconds = AIMED_CHECKPOINT_SECONDS
            for rival in in_turn(arguments.rivals, turn):
                foreign = rival == "ray" and aim.startswith(MEMGUARD_ONLY)
                if run < runs[rival] and not foreign:
                    yield Plan(
                        rival=rival,
                        trials=arguments.trials,
                        seed=seed,
                        share=share,
                        aim=aim,
                        searcher=arguments.searcher,
                        checkpoint_seconds=checkpoint_seconds,
                        timeout=arguments.timeout,
                    )
            turn += 1


_COLUMNS: tuple[tuple[str, Callable[[Outcome], str]], ...] = (
    ("", lambda o: NAMES[o.plan.rival]),
    ("aim", lambda o: o.plan.aim or "random"),
    ("killed at", lambda o: "" if o.killed_at is None else f"{o.killed_at:.1f} s"),
    ("finished", lambda o: f"{o.finished:,}"),
    ("settled", lambda o: f"{o.settled:,}"),
    ("ran again", lambda o: f"{o.ran_again:,}"),
    ("restored", lambda o: "yes" if o.opened else "NO"),
    ("in", lambda o: "" if o.restore_seconds is None else f"{o.restore_seconds:.2f} s"),
    ("results", lambda o: f"{o.results:,}"),
    ("doubled", lambda o: str(o.doubled)),
    ("lost", lambda o: str(o.lost)),
    ("changed", lambda o: str(o.changed)),
    ("missing", lambda o: str(o.missing)),
    ("surplus", lambda o: str(o.surplus)),
    ("unfinished", lambda o: str(o.unfinished)),
    ("no history", lambda o: str(o.without_history)),
    ("", lambda o: o.failure.partition(".")[0]),
)
_LEGEND = (
    f"settled: finished {SETTLED_SECONDS * 1000:.0f} ms before the kill or earlier. "
    "ran again, lost, changed: of these.\n"
    "doubled: results more than one of a trial. missing, surplus: trials less or more than asked "
    "for.\nno history: results without the line that was reported."
)


def format_runs(outcomes: list[Outcome]) -> str:
    """Return a line for each run."""
    head = tuple(name for name, _ in _COLUMNS)
    return format_lines([head, *(tuple(show(o) for _, show in _COLUMNS) for o in outcomes)])


def total(outcomes: list[Outcome]) -> dict[str, int | float | None]:
    """Return the totals of one rival's runs."""
    killed = [o for o in outcomes if o.was_killed]
    # Of the others there is no telling what is lost.
    ended = [o for o in killed if not o.failure]
    seconds = [o.restore_seconds for o in killed if o.restore_seconds is not None]
    return {
        "runs": len(outcomes),
        "killed": len(killed),
        "restored without mending": sum(o.opened for o in killed),
        "ran to the end": len(ended),
        "settled before the kill": sum(o.settled for o in killed),
        "of these, ran again": sum(o.ran_again for o in killed),
        "doubled": sum(o.doubled for o in ended),
        "lost": sum(o.lost for o in ended),
        "changed": sum(o.changed for o in ended),
        "missing": sum(o.missing for o in ended),
        "surplus": sum(o.surplus for o in ended),
        "unfinished": sum(o.unfinished for o in ended),
        "no history": sum(o.without_history for o in ended),
        "seconds to restore, median": round(statistics.median(seconds), 2) if seconds else None,
        "seconds to restore, longest": round(max(seconds), 2) if seconds else None,
    }


def format_totals(totals: dict[str, dict[str, int | float | None]]) -> str:
    """Return the totals, the rivals beside each other."""
    head = ("totals", *(NAMES[rival] for rival in totals))
    names = next(iter(totals.values()))
    shown = [[totals[rival][name] for rival in totals] for name in names]
    cells = [tuple("" if v is None else f"{v:,}" for v in values) for values in shown]
    return format_lines([head, *((name, *line) for name, line in zip(names, cells, strict=True))])


def draw(outcomes: list[Outcome], title: str, path: Path) -> None:
    """Draw, for each run, what had settled before the kill and how much of it ran again."""
    figure = new_picture(title, 6.4, 4.2)
    axes = figure.add_subplot()
    most = max([1, *(o.settled for o in outcomes)])
    axes.plot([0, most], [0, most], color="#999999", linewidth=0.8, linestyle=":", label="all")
    for rival, name in NAMES.items():
        runs = [o for o in outcomes if o.plan.rival == rival and o.was_killed]
        if runs:
            xs, ys = [o.settled for o in runs], [o.ran_again for o in runs]
            axes.scatter(xs, ys, color=BASELINES[rival].colour, label=name, alpha=0.8, zorder=3)
        stuck = [o for o in runs if not o.opened]
        if stuck:
            axes.scatter(
                [o.settled for o in stuck],
                [o.ran_again for o in stuck],
                color=BASELINES[rival].colour,
                marker="x",
                s=90,
                label=f"{name}, did not restore",
                zorder=4,
            )
    axes.set(
        xlabel=f"trials finished {SETTLED_SECONDS * 1000:.0f} ms before the kill",
        ylabel="of these, run again after the restore",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)


def _run(plans: list[Plan], storage: Path | None) -> Iterator[Outcome]:
    for number, plan in enumerate(plans, 1):
        progress = Progress()
        what = plan.aim or f"at {plan.share:.0%}"
        title = f"kills, run {number} of {len(plans)}, {NAMES[plan.rival]}, {what}"

        def show(text: str, title: str = title, progress: Progress = progress) -> None:
            progress.show(f"{title}: {text}")

        outcome = kill_and_restore(plan, storage, show)
        progress.finish(f"{title}: {_summary(outcome)}")
        yield outcome


def _summary(outcome: Outcome) -> str:
    if outcome.failure:
        return outcome.failure
    return (
        f"killed at {outcome.killed_at:.1f} s, {outcome.ran_again:,} of {outcome.settled:,} ran "
        f"again, {outcome.results:,} results, {outcome.doubled} doubled, {outcome.lost} lost"
    )


def _file_name(arguments: argparse.Namespace) -> str:
    name = "kills" if arguments.searcher == "variants" else f"kills-{arguments.searcher}"
    return name if arguments.aim == ["random"] else f"{name}-aimed"


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out the runs that the command line asks for."""
    arguments = parse_arguments(argv)
    machine = describe_machine()
    title = f"a driver killed by SIGKILL and restored, {arguments.trials:,} trials"
    print(f"\n{title}, {arguments.searcher}")
    print(machine_line(machine), flush=True)
    outcomes: list[Outcome] = []
    interrupted = False
    try:
        for outcome in _run(list(make_plans(arguments)), arguments.storage):
            outcomes.append(outcome)
    except KeyboardInterrupt:
        # What was measured so far is worth showing.
        interrupted = True
    if not outcomes:
        return 130 if interrupted else 0
    by_rival = {
        rival: [o for o in outcomes if o.plan.rival == rival]
        for rival in TWO
        if any(o.plan.rival == rival for o in outcomes)
    }
    totals = {rival: total(runs) for rival, runs in by_rival.items()}
    print(f"\n{format_runs(outcomes)}\n\n{_LEGEND}\n\n{format_totals(totals)}", flush=True)

    path = arguments.results / f"{_file_name(arguments)}.json"
    record = {
        "benchmark": "kills",
        "title": title,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "totals": totals,
        "runs": [outcome.as_json() for outcome in outcomes],
    }
    path.write_text(json.dumps(record) + "\n")
    with if_possible():
        draw(outcomes, title, path.with_suffix(".png"))
    if interrupted:
        print("\ninterrupted", file=sys.stderr)
        return 130
    guarded = by_rival.get("memguard", [])
    return 0 if all(outcome.is_whole and not outcome.ran_again for outcome in guarded) else 1


if __name__ == "__main__":
    sys.exit(main())
