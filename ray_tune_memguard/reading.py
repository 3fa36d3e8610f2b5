"""Reads all results of an experiment: as a stream, as one DataFrame, or as one Arrow table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, overload

from ray_tune_memguard.adapter import handle

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from pyarrow.fs import FileSystem

Result = dict[str, object]


def iter_results(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    storage_filesystem: FileSystem | None = None,
) -> Iterator[Result]:
    """Iterate over every result that every trial of an experiment has reported.

    The results of a trial come in the order in which it reported them, the trials in Ray's order.
    One trial is in memory at a time. The experiment may have run with or without MemGuard, it may
    still be running, and its driver may have been killed: the files of Ray's loggers are read, from
    the driver's staging directory where that is on this machine and has later results. Nothing is
    written.

    Args:
        path: the experiment's directory, or its URI (``s3://…``).
        columns: the keys to return, nested ones as ``a/b``; None for all. ``trial_id`` is always
            returned.
        storage_filesystem: the file system of ``path``, as for :meth:`ray.tune.Tuner.restore`.

    Yields:
        A flat dictionary for each result. With ``columns`` it has these keys, and None where the
        result lacks one.

    Raises:
        ValueError: there is no experiment at ``path``.
        TypeError: ``columns`` is not a sequence of texts.

    Examples:
        >>> from ray_tune_memguard import iter_results
        >>> [result["loss"] for result in iter_results(experiment, columns=["loss"])]
        [0.5, 0.25]
    """
    return _with_ids(_found(path, storage_filesystem), _checked(columns))


@overload
def read_results(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    as_arrow: Literal[False] = False,
    storage_filesystem: FileSystem | None = None,
) -> pandas.DataFrame: ...
@overload
def read_results(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    as_arrow: Literal[True],
    storage_filesystem: FileSystem | None = None,
) -> pyarrow.Table: ...
def read_results(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    as_arrow: bool = False,
    storage_filesystem: FileSystem | None = None,
) -> pandas.DataFrame | pyarrow.Table:
    """Read every result of every trial of an experiment into one table.

    It has a row for each result, in the order of :func:`iter_results`, and a column for each key.
    ``trial_id`` is the first column. A column has the type that holds all of its values: missing
    numbers are NaN, and missing integers make a DataFrame's column one of floats. Values that have
    no type in common are Python objects in a DataFrame, and JSON texts in an Arrow table. Lists and
    dictionaries are Python objects in a DataFrame as well; in an Arrow table the type holds what is
    inside, so its numbers may become floats, and a dictionary has null for a key that only others
    have.

    Args:
        path: the experiment's directory, or its URI (``s3://…``).
        columns: the keys to return, nested ones as ``a/b``; None for all. ``trial_id`` is always
            returned.
        as_arrow: whether to return a ``pyarrow.Table``, in which a missing value is null.
        storage_filesystem: the file system of ``path``, as for :meth:`ray.tune.Tuner.restore`.

    Returns:
        A ``pandas.DataFrame``, or a ``pyarrow.Table``.

    Raises:
        ValueError: there is no experiment at ``path``.
        TypeError: ``columns`` is not a sequence of texts.

    Examples:
        >>> from ray_tune_memguard import read_results
        >>> list(read_results(experiment, columns=["loss"])["loss"])
        [0.5, 0.25]
        >>> read_results(experiment, columns=["loss"], as_arrow=True).num_rows
        2
    """
    from ray_tune_memguard.report.result_table import ResultTable

    table = ResultTable(_checked(columns))
    for result in _with_ids(_found(path, storage_filesystem), None):
        table.add(result)
    return table.arrow() if as_arrow else table.pandas()


def _checked(columns: Sequence[str] | None) -> list[str] | None:
    if columns is None:
        return None
    wanted = [] if isinstance(columns, (str, bytes)) else list(columns)
    if isinstance(columns, (str, bytes)) or not all(isinstance(name, str) for name in wanted):
        raise TypeError(
            f"columns must be a sequence of texts, for example ['loss'], or None; got {columns!r}"
        )
    return list(dict.fromkeys(["trial_id", *wanted]))


def _found(
    path: str | os.PathLike[str], filesystem: FileSystem | None
) -> Iterator[tuple[str | None, Result]]:
    return handle.results_of(handle.location_of(path, filesystem), filesystem)


def _with_ids(
    found: Iterator[tuple[str | None, Result]], columns: list[str] | None
) -> Iterator[Result]:
    for trial_id, result in found:
        if trial_id is not None:
            result.setdefault("trial_id", trial_id)
        yield result if columns is None else {name: result.get(name) for name in columns}
