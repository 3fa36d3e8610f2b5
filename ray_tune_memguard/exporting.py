"""Exports the results of an experiment to files that other programs read."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ray_tune_memguard.adapter import handle
from ray_tune_memguard.adapter.incomplete_export import IncompleteExportError
from ray_tune_memguard.reading import Result, iter_results
from ray_tune_memguard.report.replacing import replacing

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["FORMATS", "IncompleteExportError", "export_results"]

FORMATS = ("files", "parquet", "csv", "json")


def export_results(
    path: str | os.PathLike[str],
    to: Literal["files", "parquet", "csv", "json"] = "files",
    *,
    destination: str | os.PathLike[str] | None = None,
    storage_filesystem: FileSystem | None = None,
) -> str:
    """Write all results of an experiment to files.

    - ``"files"`` writes the files of Ray's loggers into the directory of each trial:
      ``result.json``, ``progress.csv``, ``params.json``, ``params.pkl`` and TensorBoard's events.
      They are those that the loggers would have written, because the loggers write them; events
      have the times of the results, and there is one file of them for each trial, whose name ends
      in ``.memguard``. Other event files stay. Trials whose results are in files already are left
      as they are. What one of the loggers refuses is left out of its files; so are the parameters
      of a trial whose config needs a module that cannot be imported here.
    - ``"parquet"`` and ``"csv"`` write one table of all results, with the columns of
      :func:`read_results`; ``"json"`` writes the same, one object a line.

    Args:
        path: the experiment's directory, or its URI (``s3://…``).
        to: the format.
        destination: a local directory for the trials' directories with ``"files"``, otherwise the
            file. Default None: the experiment's own directories, or ``results.parquet``,
            ``results.csv`` or ``results.json`` in the present working directory.
        storage_filesystem: the file system of ``path``, as for :meth:`ray.tune.Tuner.restore`.

    Returns:
        The path of the directory or of the file.

    Raises:
        ValueError: ``to`` is not one of these, or there is no experiment at ``path``.
        RuntimeError: the experiment cannot be read, for example because its run is not over; or
            :class:`IncompleteExportError`, which says what was left out, when the rest is written.
        OSError: a file cannot be written.

    Examples:
        >>> from ray_tune_memguard import export_results
        >>> file = export_results(experiment, to="csv", destination=experiment / "all.csv")
        >>> open(file).readline().startswith("trial_id,")
        True
    """
    if to not in FORMATS:
        raise ValueError(f"to must be one of {', '.join(map(repr, FORMATS))}; got {to!r}")
    location = handle.location_of(path, storage_filesystem)
    if to == "files":
        folder = None if destination is None else Path(destination).expanduser().absolute()
        handle.export_files(location, storage_filesystem, folder)
        return location if folder is None else str(folder)
    target = Path(destination or f"results.{to}").expanduser().absolute()
    with replacing(target) as part:
        _WRITERS[to](location, storage_filesystem, part)
    return str(target)


def _write_parquet(path: str, filesystem: FileSystem | None, target: Path) -> None:
    from pyarrow import parquet

    from ray_tune_memguard.report.result_table import ResultTable

    table = ResultTable()
    for result in _results(path, filesystem):
        table.add(result)
    # Of a path it would remove what is there if it fails, also a device.
    with target.open("wb") as file:
        parquet.write_table(table.arrow(), file, compression="zstd")


def _write_csv(path: str, filesystem: FileSystem | None, target: Path) -> None:
    # The columns are known once all results were read, so they are read twice.
    columns = dict.fromkeys(["trial_id"])
    for result in _results(path, filesystem, "Finding columns"):
        columns.update(dict.fromkeys(result))
    with target.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        # An experiment that is running may have got new ones.
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(_results(path, filesystem))


def _write_json(path: str, filesystem: FileSystem | None, target: Path) -> None:
    with target.open("w") as file:
        for result in _results(path, filesystem):
            file.write(f"{json.dumps(result)}\n")


def _results(
    path: str, filesystem: FileSystem | None, what: str = "Reading results"
) -> Iterator[Result]:
    """All results, with a progress bar on a terminal."""
    from ray_tune_memguard.system.progress_bar import progress_bar

    yield from progress_bar(iter_results(path, storage_filesystem=filesystem), what, "result")


_WRITERS = {"parquet": _write_parquet, "csv": _write_csv, "json": _write_json}
