"""The table of scenarios: what runs, which baselines, which size, metrics and thresholds.

What a metric's columns mean: see ``rows.Metric`` and ``rows.table``. Thresholds are in bytes,
seconds, shares and numbers, whatever unit is shown.
"""

from __future__ import annotations

from functools import partial

from benchmarks import measures, metrics
from benchmarks.baselines import GATES, HISTORIES, MEMGUARD, PROFILES, RAY, SIX
from benchmarks.children.opening import READS
from benchmarks.measures import RAYS_SHARE, TIMEOUT_S, child, sweep
from benchmarks.metrics import LEVEL_AT, WARM_UP
from benchmarks.report import Panel
from benchmarks.runner import Scenario, Section
from tests.integration.killed_histories import SETTLED_S

MB, MIB = 1_000_000, 2**20
_RSS_BY_TRIAL = (
    Panel("finished trials", "driver RSS, MiB", metrics.drawn("finished", "rss", MIB)),
)
_RSS_BY_RESULT = (Panel("results", "driver RSS, MiB", metrics.drawn("results", "rss", MIB)),)
_STORE_BY_RESULT = (Panel("results", "object store, MiB", metrics.drawn("results", "store", MIB)),)
_BIG_SWEEP = (
    Panel("finished trials", "driver RSS, MB", metrics.drawn("finished", "rss", MB)),
    Panel("finished trials", "time per trial, ms", metrics.trial_milliseconds),
)

_REUSED = """
RSS per trial, last 3/4 of the trials | B | slope rss finished 0.75 | <= 1000
RSS at the loop's end | MiB | at_end rss
RSS, highest sample | MiB | highest rss
fit() adds | MiB | rss_after_fit - at_end rss | <= 10_000_000
fit() adds, after gc.collect() | MiB | rss_after_gc - at_end rss
RSS once everything has been read | MiB | rss_after_read_all
results, against Ray's | yes | same_results
"""
_FRESH = """
RSS per trial, last 2/3 of the trials | B | slope rss finished 2/3 | <= 5000
RSS at the loop's end | MiB | at_end rss
RSS, highest sample | MiB | highest rss
results, against Ray's | yes | same_results
"""
_SCALARS = """
RSS per result, last 3/4 of the results | B | slope rss results 0.75 | <= 200
RSS at the trial's end | MiB | at_end rss
results, against Ray's | yes | same_results
"""
_LARGE = """
object store per result, last 3/4 of the results | B | slope store results 0.75 | <= 2000
object store, highest | MiB | highest store
results, against Ray's | yes | same_results
"""
_CARRIED = """
RSS per trial, last 3/4 of the trials | B | slope rss finished 0.75
RSS, highest sample | MiB | highest rss
fit() | s | fit_s
results, against Ray's | yes | same_results
"""
_LOSSES = """
results with their history | text | histories
results, against Ray's | yes | same_results
the same DataFrame, but for its order | yes | same_rows
the console's last count | yes | same_console
Ray alone reads and resumes it, the same trial is best | yes | opened
Tuner.restore works where MemGuard is not installed | text | restored
"""
_READING = f"opening it, the best trial, {measures.READ:,} random results"
_LEVEL = f"""
RSS at trial {LEVEL_AT:,} | MB | level
RSS rises above that by | MB | rise | <= 60_000_000
throughput, trials of the first tenth | /s | throughput 0 0.1
throughput, trials of the last tenth | /s | throughput 0.9 1
throughput, last by first | factor | throughput 0.9 1 / throughput 0 0.1 | >= 0.9
"""
_HUNDRED_THOUSAND = f"""
trials | text | finished
fit(), per trial | ms | fit_s / at_end finished
its last upload | s | last_checkpoint total_s
what it does before its loop, most of it imports of Ray's | s | before_loop_s
what it does after its loop, beside that upload | s | after_loop | <= 3
{_LEVEL}
the highest RSS, by the end of fit(), above that | MB | peak - level | <= 60_000_000
one experiment checkpoint, early | ms | early_checkpoint
one experiment checkpoint, late | ms | late_checkpoint
one experiment checkpoint, late by early | factor | late_checkpoint / early_checkpoint | <= 2
experiment state file | MB | last_checkpoint state_bytes
all files beside the trials' | MB | bytes_beside_trials
{_READING} | s | reading:seconds | <= 2
{_READING}: peak | MB | reading:peak | <= 30_000_000
resuming it, with nothing left to do | s | resuming:seconds | <= 4
resuming it, with nothing left to do: peak | MB | resuming:peak
"""
# Early is around a tenth of the trials.
_UPLOADS = """
one upload, early | MB | upload 0.05 0.15
one upload, late | MB | upload 0.9 1
one upload, late by early | factor | upload 0.9 1 / upload 0.05 0.15 | <= 2
the last upload | MB | last_upload
all uploads, per trial | B | sent / at_end finished
"""
# What has a clock of its own is as deep as its dots in what is named above it.
_OVERHEAD = f"""
a trial, all in all, mean | ms | per_trial_s
added to a trial, median | ms | added:median_s | <= 0.0003 | own
added, mean | ms | added:mean_s | | own
added, 95 % are below | ms | added:p95_s | | own
added, mean with the tracker's looks in the first {WARM_UP} | ms | added:mean_of_all_s | | own
> spill | µs | parts:spill | | own drawn
> · writing it down | µs | parts:writing it down | | own drawn
> · · its state as a pickle | µs | parts:its state as a pickle | | own drawn
> · · its texts as JSON | µs | parts:its texts as JSON | | own drawn
> · packing and inserting both | µs | parts:packing and inserting both | | own drawn
> · letting go | µs | parts:letting go | | own drawn
> · to the state file | µs | parts:to the state file | | own drawn
> other hooks | µs | parts:other hooks | | own drawn
> · reports and looks | µs | parts:reports and looks | | own drawn
> checkpoint | µs | parts:checkpoint | | own drawn
reading a trial back | µs | read_back_s | | own
its room in the store | B | store_bytes_per_trial | | own
its room in the experiment state file | B | state_file_bytes_per_trial | | own
"""
_GET_RESULTS = "Tuner.restore(path).get_results()"
_RAYS_FIRST, _RAYS_AGAIN = (f"open_experiment(path) of Ray's, {t}" for t in ("first time", "again"))
_RAYS_AFTER = "ExperimentAnalysis(path) of Ray's, after that"
_RESTORE = f"""
ExperimentAnalysis(path) | s | analysis:seconds | <= 1 | drawn
ExperimentAnalysis(path): RSS | MB | analysis:rss | <= 20_000_000
ExperimentAnalysis(path): peak | MB | analysis:peak
> then the best trial | s | analysis:seconds_to_best
> then the DataFrame | s | analysis:seconds_to_dataframe
{_GET_RESULTS} | s | get_results:seconds | <= 1 | drawn
{_GET_RESULTS}: RSS | MB | get_results:rss | <= 20_000_000
{_GET_RESULTS}: peak | MB | get_results:peak
> then the best trial | s | get_results:seconds_to_best
> then the DataFrame | s | get_results:seconds_to_dataframe
{_RAYS_FIRST} | s | opening first seconds | <= 6 | drawn
{_RAYS_FIRST}: peak | MB | opening first peak | <= 60_000_000
{_RAYS_AGAIN} | s | opening again seconds | <= 1 | drawn
{_RAYS_AGAIN}: RSS | MB | opening again rss | <= 20_000_000
{_RAYS_AFTER} | s | opening after seconds | <= 1 | drawn
{_RAYS_AFTER}: RSS | MB | opening after rss | <= 20_000_000
resuming, with nothing left to do | s | resume:seconds | | drawn
resuming: peak | MB | resume:peak
a resumed run starts larger than a new one, by | MB | resume:rss_at_setup - begin:rss_at_setup | \
<= 30_000_000
"""
_READINGS = {
    "frame": "get_dataframe()",
    "filtered": "get_dataframe(metric, mode)",
    "last results": "results_df",
    "configs": "get_all_configs(prefix=True)",
    "each frame": "all trial_dataframes",
    "stream": "iter_results(path)",
    "whole": "read_results(path)",
    "arrow": "read_results(path, as_arrow=True)",
}
_HISTORIES = """
fit() | s | fit_s
a trial | ms | fit_s / outcome:rows
fit(), by Ray alone's | factor | fit_s / of ray fit_s | <= 0.1 | own
fit(), by that with Ray's loggers | factor | fit_s / of files fit_s | <= 0.333333 | own
DataFrame of all trials | s | outcome:frame_s
files per trial | factor | outcome:files / outcome:rows | <= 0.05
directories per trial | factor | outcome:directories / outcome:rows
histories per trial | B | bytes_each histories trial_files
trial store per trial | B | bytes_each trial_store
both stores per trial | B | bytes_each histories trial_store | <= 1500 | own
experiment state file per trial | B | bytes_each state_file
all rows and histories are there | yes | whole
"""
_LONG_TRIAL = """
one result | B | bytes_each histories / outcome:history | <= 25
all results are there | yes | whole
"""
_RATE = f"""
fit() | s | fit_s
{_LEVEL}
"""
_KILLS = f"""
the sweep was running | number | of_kills was_running
results that were {SETTLED_S} s old | number | of_kills settled
of them lost | number | of_kills lost | max <= 0
of them lost at the end of the restored sweep | number | of_kills lost_at_end
histories short at the end | number | of_kills short_histories | max <= 0
trials missing at the end | number | of_kills missing | max <= 0
"""
# Without the first look, which imports what it needs and finds the processes.
_LOOKS = """
looks | number | looks | | own
the first look | ms | first_look_s | | own
one look, mean | ms | look_s | <= {limit} | own
the sweep | s | seconds
"""
_NAMED, _NOT_NAMED = (f"the growth | yes | {claim} | | own" for claim in ("named", "not_named"))
_HEAD_NODE = """
gcs_server, per trial | B | true_slope
the reporter says | B | per_trial | | own
off by more than 25 % and 500 B | B | beyond_a_quarter | <= 0 | own
"""
_HEAD_LOOKS = _LOOKS.format(limit=0.001)
_AS_ADVISED = f"""
{_HEAD_NODE}
{_NOT_NAMED}
gcs_server, as advised | B | true_slope | <= 1000 | own
{_HEAD_LOOKS}
"""
_LEAK = """
named at trial | number | named_at | <= 100 | own
the reporter says, per trial | B | per_trial | | own
off by | % | error_of_leak {left} | <= 0.1 | own
"""
_TOY = f"""
of the budget, highest | % | most | max <= 1 | {" ".join(GATES[1:])}
of the budget, after the first wave | % | later | max <= 1
the sweep | s | seconds
the sweep, by Ray alone's | factor | seconds / of ray seconds | <= 1.6 | own
"""
_GATED_SWEEPS = """
ended with all trials | number | ended
failed, hung, or ended otherwise | number | count failures | max <= 0
pauses | number | pauses
"""
_PAUSED = """
steps a second | /s | steps | <= 15
steps a second, Ray alone with the same trial | /s | steps_alone
of a core | % | cpu | <= 0.02
of a core, Ray alone with the same trial | % | cpu_alone
"""
_AMPLE = """
with the gate | s | gated
by Ray alone | s | alone
ratio | factor | gated / alone | <= 1.01
the gate's own code, of the time | % | own
"""
_KEEPER = """
a second after the kill, ray.put (Ray alone) | text | read_of_put
a second after the kill, Keeper | yes | read_of_keeper
ray.put, median | ms | median times:ray.put
a copy, median | ms | median times:copy
keep, median | ms | median times:keep
release, median | ms | median times:release
keep by ray.put and copy | factor | keep_by_put_and_copy | <= 1.3
left in the object store by 20 released arrays | B | left | max <= 0
anonymous memory of the keeper | MiB | memory:keeper
anonymous memory of an actor that imports this package | MiB | memory:importing
"""
_TRIAL_MEMORY = """
of a core | % | share | <= 0.002
kept of a finished trial | 0.1 B | kept | <= 1
"""
_NODES = """
peaks off by | MiB | largest off_by off_by_after | <= 5_242_880
longest hook while a node is lost | ms | longest_hook_s | <= 0.005
"""
_SCRAPES = """
an empty page, median | ms | median empty_s
an empty page, 99 % are below | ms | ninety_nine empty_s
the metrics, median | ms | median metrics_s | <= 0.005
the metrics, 99 % are below | ms | ninety_nine metrics_s
the page | B | bytes
"""
_HTML_REPORT = """
the page | B | bytes | <= 2_000_000
the command | s | command_s | <= 5
> importing Ray Tune and the package | s | import_s
> the rest, for the page | s | command_s - import_s
"""
_NATIVE = """
RSS, per trial | B | slope rss finished 2/3
C allocator in use, per trial | B | slope in_use finished 2/3
C allocator's slack, per trial | B | slope slack finished 2/3
blocks in use in Python's allocator, per trial | number | slope blocks finished 2/3
"""
_PROFILE = """
CPU time of the trial and its profile | s | cpu_s
by Ray alone's | factor | cpu_s / of ray cpu_s | | own
the profile | B | bytes | | own
of the memory at the line that allocates most | % | share | min >= 0.9 | own
"""


def _objects(title: str, left: int, held: int) -> Section:
    rows = _LEAK.format(left=left) if left else _NOT_NAMED
    measure = child("reporters.object_store", timeout_s=TIMEOUT_S, left=left, held=held)
    return Section(title, 200, measure, rows + _LOOKS.format(limit=0.01), runs=1, notes="lines")


def _of_frames(longest_s: dict[str, int], largest: dict[str, int]) -> str:
    """Each figure has opening in it, and the peak is on top of what the process had before."""
    rows = []
    for how, name in _READINGS.items():
        took = f"<= {longest_s[how]}" if how in longest_s else ""
        peak = f"<= {largest[how]}" if how in largest else ""
        who, drawn = ("", "drawn") if how in READS else ("own", "")
        rows.append(f"{name} | s | {how}:seconds | {took} | {who} {drawn}")
        rows.append(f"{name}: peak | MB | {how}:peak | {peak} | {who}")
    return "\n".join(rows)


#: What Ray alone does not do, or does in the same process.
_mine = partial(Section, baselines=(MEMGUARD,), runs=1)
_results = partial(Section, unit="results")
_opened = partial(Section, rows=_RESTORE, measure=measures.restore, prepare=measures.make_both)
_frames = partial(Section, measure=measures.frames, prepare=measures.make_frames)
_of_store = partial(Section, judged=("store",), runs=1)
_head = partial(Section, size=800, runs=1, quick=100, notes="lines")
_profile = partial(
    Section,
    size=100_000,
    rows=_PROFILE,
    baselines=(RAY, *PROFILES),
    judged=PROFILES,
    unit="elements",
    quick=5000,
)

RESULTS = sweep("fresh", unit="results")
LARGE = sweep("fresh", unit="results", payload_kb=200, loggers=False, verbose=0)
FRAME = partial(sweep, "simulated reused", samples=20, verbose=0, read="frame")
RATE = sweep("simulated reused", samples=500, verbose=0, read="number")
NATIVE = sweep("fresh", more="allocator", pending=4, read="number")
HEAD_NODE = partial(child, "reporters.head_node", timeout_s=TIMEOUT_S)
GATE = partial(child, timeout_s=TIMEOUT_S)

SCENARIOS = {
    "reused": Scenario(
        "real trials, reuse_actors=True",
        Section("reused actors", 4000, sweep("reused"), _REUSED, SIX, panels=_RSS_BY_TRIAL),
    ),
    "fresh": Scenario(
        "real trials, a fresh actor each",
        Section("fresh actors", 300, sweep("fresh"), _FRESH, SIX, panels=_RSS_BY_TRIAL),
    ),
    "results": Scenario(
        "one trial with many results",
        _results("one scalar per result", 8000, RESULTS, _SCALARS, panels=_RSS_BY_RESULT),
        _results("200 KB per result, no loggers", 2000, LARGE, _LARGE, panels=_STORE_BY_RESULT),
    ),
    "carried": Scenario(
        "a trainable that carries 20 MB in its closure, reuse_actors=True",
        Section(
            "reused actors", 200, sweep("reused", carried_mb=20), _CARRIED, panels=_RSS_BY_TRIAL
        ),
    ),
    "losses": Scenario(
        "what is missing afterwards, simulated actors",
        Section(
            "simulated actors",
            300,
            sweep("simulated", opened=True),
            _LOSSES,
            SIX,
            panels=_RSS_BY_TRIAL,
        ),
    ),
    "frames": Scenario(
        "all results of a finished experiment",
        _frames("small", 10_000, rows=_of_frames({"frame": 2, "filtered": 3}, {})),
        _frames("big", 100_000, rows=_of_frames({"frame": 20}, {"frame": 500_000_000})),
    ),
    "gate": Scenario(
        "what the launch gate does, and what it costs",
        Section(
            "toy: trials that grow to 320 MiB on four CPUs, a budget of 700 MiB",
            10,
            GATE("gate.toy"),
            _TOY,
            (RAY, *GATES),
            GATES,
            runs=10,
        ),
        _mine(
            "sweeps of all kinds on a node whose memory comes and goes",
            40,
            measures.gated_sweeps,
            _GATED_SWEEPS,
            unit="sweeps",
            quick=8,
            notes="failures",
        ),
        _mine(
            "paused: a trial runs, another waits", 1, GATE("gate.paused"), _PAUSED, unit="driver"
        ),
        _mine("ample: a sweep never waits", 600, GATE("gate.ample"), _AMPLE, runs=10),
    ),
    "head-node": Scenario(
        "growth of the head node's processes, reused actors",
        _head("Ray's own settings", measure=HEAD_NODE(), rows=_HEAD_NODE + _NAMED + _HEAD_LOOKS),
        _head(
            "as advised, no task events",
            measure=HEAD_NODE(variables={"RAY_task_events_report_interval_ms": "0"}),
            rows=_AS_ADVISED,
        ),
        _head(
            "capped at 500 tasks",
            measure=HEAD_NODE(variables={"RAY_task_events_max_num_task_in_gcs": "500"}),
            rows=_HEAD_NODE + _HEAD_LOOKS,
        ),
    ),
    "histories": Scenario(
        "all results of a sweep in one file, simulated actors",
        _of_store("sweeps of one result per trial", 30_000, FRAME(), _HISTORIES, HISTORIES),
        _of_store(
            "long: one trial, many results",
            10_000,
            FRAME(unit="results"),
            _LONG_TRIAL,
            ("store",),
            unit="results",
        ),
        _of_store(
            "rate: histories of a big sweep in the store",
            100_000,
            RATE,
            _RATE,
            ("store",),
            least=20_000,
            panels=_BIG_SWEEP,
        ),
        _mine("kills of drivers, real actors", 50, measures.kills, _KILLS, unit="drivers", quick=2),
    ),
    "html-report": Scenario(
        "memguard report, CPU time of the command",
        _mine("page of a sweep", 10_000, child("html_report.measure"), _HTML_REPORT, runs=5),
    ),
    "hundred-thousand": Scenario(
        "a big sweep on two cores; Ray alone runs a tenth",
        Section(
            "simulated trials, no loggers",
            100_000,
            measures.hundred_thousand,
            _HUNDRED_THOUSAND,
            # Ray's tenth has a level, too, and time for some experiment checkpoints.
            least=20_000,
            rays_share=RAYS_SHARE,
            panels=_BIG_SWEEP,
        ),
    ),
    "keeper": Scenario(
        "arrays of 5 MB that outlive their trial",
        _mine("arrays of killed trials", 100, child("keeper.measure", rounds=200), _KEEPER),
    ),
    "metrics": Scenario(
        "time of a scrape",
        _mine(
            "500 scrapes",
            64,
            child("scrapes.measure", count=500),
            _SCRAPES,
            unit="running trials",
        ),
    ),
    "native": Scenario(
        "what stays of fresh actors with MemGuard, at most four trials waiting",
        _mine("slopes over the last two thirds", 300, NATIVE, _NATIVE),
    ),
    "object-store": Scenario(
        "leaks into an object store of 80 MiB, reused actors",
        _objects("leaves 200 KB", 200_000, 0),
        _objects("leaves 1 MB, so that Ray spills", 1_000_000, 0),
        _objects("holds 4 MB until the trial ends", 0, 4_000_000),
    ),
    "overhead": Scenario(
        "what MemGuard adds to a trial",
        # Long enough for an experiment checkpoint in mid-sweep, which comes every ten seconds.
        Section(
            "simulated trials, no loggers", 6000, measures.overhead, _OVERHEAD, least=2 * WARM_UP
        ),
    ),
    "profile": Scenario(
        "slowdown of a profiled trial, CPU time",
        _profile(
            "arrays: arithmetic on new arrays of 6.4 MB",
            measure=child("profile.run_trial", kind="arrays"),
        ),
        _profile(
            "allocations: blocks of 600 bytes",
            measure=child("profile.run_trial", kind="allocations"),
        ),
        _profile(
            "calls of a function that does next to nothing",
            measure=child("profile.run_trial", kind="calls"),
        ),
    ),
    "restore": Scenario(
        "opening and resuming a finished experiment",
        _opened("small", 1_000),
        _opened("big", 10_000),
    ),
    "trial-memory": Scenario(
        "what measuring trials costs",
        _mine(
            "looks at 64 processes, one a second",
            60,
            child("trial_memory.measure"),
            _TRIAL_MEMORY,
            unit="seconds",
            quick=10,
        ),
        _mine("nodes: one of two is killed", 2, measures.two_nodes, _NODES, unit="nodes"),
    ),
    "uploads": Scenario(
        "what a checkpoint uploads; Ray alone runs a tenth",
        Section(
            "simulated trials on a local S3 server",
            measures.UPLOADING,
            measures.uploads,
            _UPLOADS,
            rays_share=RAYS_SHARE,
            panels=(Panel("finished trials", "one upload, MB", metrics.upload_points),),
        ),
    ),
}
