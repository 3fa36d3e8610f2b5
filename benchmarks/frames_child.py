"""Read all results of one experiment in this process, and write what it took as JSON.

The parent (``benchmarks.frames``) starts it afresh for each figure.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.tune import ExperimentAnalysis

from benchmarks.problem import METRIC, MODE
from benchmarks.restore_child import measured
from benchmarks.runs import write_record
from benchmarks.sweep import set_environment


def _write_histories(path: Path) -> int:
    """Write each trial's ``result.json``, as Ray's logger does; return the number of trials."""
    import ray_tune_memguard  # noqa: F401

    written = 0
    for trial in ExperimentAnalysis(str(path)).trials:
        directory = path / trial.relative_logdir
        directory.mkdir(exist_ok=True)
        (directory / "result.json").write_text(json.dumps(trial.last_result) + "\n")
        written += 1
    return written


def _frame(path: Path) -> int:
    return len(ExperimentAnalysis(str(path)).dataframe())


def _filtered(path: Path) -> int:
    return len(ExperimentAnalysis(str(path)).dataframe(METRIC, MODE))


def _last_results(path: Path) -> int:
    return len(ExperimentAnalysis(str(path)).results_df)


def _configs(path: Path) -> int:
    return len(ExperimentAnalysis(str(path)).get_all_configs(prefix=True))


def _each_frame(path: Path) -> int:
    return sum(len(frame) for frame in ExperimentAnalysis(str(path)).trial_dataframes.values())


def _stream(path: Path) -> int:
    from ray_tune_memguard import iter_results

    return sum(1 for _ in iter_results(path))


def _whole(path: Path) -> int:
    from ray_tune_memguard import read_results

    return len(read_results(path))


def _arrow(path: Path) -> int:
    from ray_tune_memguard import read_results

    return int(read_results(path, as_arrow=True).num_rows)


#: What Ray alone can do as well.
READS = {
    "frame": _frame,
    "filtered": _filtered,
    "last results": _last_results,
    "configs": _configs,
    "each frame": _each_frame,
}
STREAMS = {"stream": _stream, "whole": _whole, "arrow": _arrow}


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frames_child")
    parser.add_argument("how", choices=["write", *READS, *STREAMS])
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--with-memguard", action="store_true")
    arguments = parser.parse_args(argv)
    set_environment(loggers=True)
    if arguments.how == "write":
        write_record({"trials": _write_histories(arguments.experiment)})
        return
    if arguments.with_memguard:
        import ray_tune_memguard  # noqa: F401
    record: dict[str, Any] = {}
    with measured(record):
        record["trials"] = {**READS, **STREAMS}[arguments.how](arguments.experiment)
    assert ("ray_tune_memguard" in sys.modules) == arguments.with_memguard
    write_record(record)


if __name__ == "__main__":
    main()
