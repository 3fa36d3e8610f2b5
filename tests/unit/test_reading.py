"""``iter_results`` and ``read_results``, of files as Ray's loggers write them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pytest
from pyarrow import parquet

from ray_tune_memguard import exporting, iter_results, read_results
from ray_tune_memguard.adapter.run.checkpoint import with_pointer
from ray_tune_memguard.report.result_table import ResultTable

STATE = '{"trial_data": [], "runner_data": {}, "stats": {}}'


def write(directory: Path, *results: dict[str, Any], end: str = "") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(result) + "\n" for result in results)
    (directory / "result.json").write_text(lines + end)


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """An experiment without a trial store: Ray ran alone, or the run is under way."""
    path = tmp_path / "experiment"
    write(path / "trial_1", {"loss": 0.5, "info": {"n": 1}, "trial_id": "1"}, {"trial_id": "1"})
    write(path / "trial_2", {"loss": math.nan, "text": "x", "trial_id": "2"})
    (path / ".memguard").mkdir()
    (path / "experiment_state-2026-11-22_10-00-00.json").write_text(STATE)
    return path


def test_all_results_in_order(experiment: Path) -> None:
    first, second, third = iter_results(experiment)
    assert first == {"loss": 0.5, "trial_id": "1", "info/n": 1}
    assert second == {"trial_id": "1"}
    assert math.isnan(third["loss"])  # type: ignore[arg-type]


def test_some_columns(experiment: Path) -> None:
    found = list(iter_results(experiment, columns=["info/n", "none"]))
    assert [result["info/n"] for result in found] == [1, None, None]
    assert [list(result) for result in found] == [["trial_id", "info/n", "none"]] * 3


def test_one_frame(experiment: Path) -> None:
    frame = read_results(experiment)
    expected = pandas.DataFrame(
        {
            "trial_id": ["1", "1", "2"],
            "loss": [0.5, math.nan, math.nan],
            "info/n": [1.0, math.nan, math.nan],
            "text": [None, None, "x"],
        }
    )
    pandas.testing.assert_frame_equal(frame, expected, check_dtype=False)
    assert frame["loss"].dtype == frame["info/n"].dtype == "float64"


def test_an_arrow_table(experiment: Path) -> None:
    table = read_results(experiment, columns=["loss", "info/n"], as_arrow=True)
    assert table.schema.names == ["trial_id", "loss", "info/n"]
    assert table.schema.field("info/n").type == pyarrow.int64()
    assert table.column("loss").null_count == 1


def test_a_file_that_is_being_written(experiment: Path) -> None:
    write(experiment / "trial_3", {"loss": 1.0, "trial_id": "3"}, end='{"loss": 2.')
    assert [r["loss"] for r in iter_results(experiment, columns=["loss"])][-1:] == [1.0]


def test_results_that_were_not_uploaded(experiment: Path, tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    write(staging / "trial_2", {"loss": 2.0, "trial_id": "2"}, {"loss": 1.0, "trial_id": "2"})
    write(staging / "trial_3", {"loss": 3.0, "trial_id": "3"})
    [state_file] = experiment.glob("*.json")
    state_file.write_text(with_pointer(STATE, experiment / "none.sqlite", staging))
    found = [(r["trial_id"], r["loss"]) for r in iter_results(experiment, columns=["loss"])]
    assert found == [("1", 0.5), ("1", None), ("2", 2.0), ("2", 1.0), ("3", 3.0)]


def test_csv_only(tmp_path: Path) -> None:
    (tmp_path / "trial_1").mkdir()
    (tmp_path / "trial_1" / "progress.csv").write_text("loss,info/n,trial_id\n0.5,1,0017\n")
    assert list(iter_results(tmp_path)) == [{"loss": 0.5, "info/n": 1, "trial_id": "0017"}]


def test_no_experiment(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no experiment"):
        iter_results(tmp_path / "none")


@pytest.mark.parametrize("columns", ["loss", b"loss", [1]])
def test_columns_that_are_not_allowed(tmp_path: Path, columns: Any) -> None:
    with pytest.raises(TypeError, match="columns must be"):
        read_results(tmp_path, columns=columns)


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_values_without_a_type_in_common(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("ray_tune_memguard.report.result_table._CHUNK_ROWS", chunk)
    values = [1, "x", 2**70, [1], None, True]
    table = ResultTable()
    for value in values:
        table.add({"trial_id": "1", "mixed": value, "number": 1})
    table.add({"trial_id": "1", "number": 0.5, "late": False})
    assert list(table.pandas()["mixed"]) == [*values, None]
    assert list(table.pandas()["number"]) == [1.0] * len(values) + [0.5]
    texts = table.arrow().column("mixed").to_pylist()
    assert [value and json.loads(value) for value in texts] == [*values, None]
    assert table.arrow().column("late").null_count == len(values)


def test_an_empty_table() -> None:
    assert list(ResultTable().pandas().columns) == ["trial_id"]
    assert ResultTable(["trial_id", "loss"]).arrow().num_rows == 0


HALF = json.loads('"\\ud800"')


def in_table(*values: object) -> ResultTable:
    table = ResultTable()
    for value in values:
        table.add({"trial_id": "1", "value": value})
    return table


@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize(
    "values",
    [
        [[1, 2], [0.5]],
        [[None, 1], [2]],
        [{"b": 1}, {"c": 2}],
        [[{"b": 1}], None, [{"b": 0.5, "c": {}}]],
        [[1, 2], [3]],
        [{"a": [1]}, {"a": [-0.0, 1]}],
        [[], {}],
        [[HALF], ["a"]],
        [{HALF: 1}, {"a": 1}],
        [True, [False]],
    ],
)
def test_nested_values_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, chunk: int, values: list[Any]
) -> None:
    monkeypatch.setattr("ray_tune_memguard.report.result_table._CHUNK_ROWS", chunk)
    found = list(in_table(*values).pandas()["value"])
    assert json.dumps(found) == json.dumps(values)


@pytest.mark.parametrize("chunk", [1, 100])
@pytest.mark.parametrize(
    ("values", "in_arrow"),
    [
        # Numbers get one type, as in a column of numbers.
        ([[1, 2], [0.5]], [[1.0, 2.0], [0.5]]),
        ([HALF, "a", None], ["\\ud800", "a", None]),
        ([[HALF], ["a"]], ['["\\ud800"]', '["a"]']),
        ([[{}], [{}]], ["[{}]", "[{}]"]),
        ([{}, {"a": 1}], [{"a": None}, {"a": 1}]),
        ([[], []], [[], []]),
        ([1, HALF], ["1", '"\\ud800"']),
    ],
)
def test_what_arrow_does_not_have(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    chunk: int,
    values: list[Any],
    in_arrow: list[Any],
) -> None:
    monkeypatch.setattr("ray_tune_memguard.report.result_table._CHUNK_ROWS", chunk)
    table = in_table(*values).arrow()
    assert table.column("value").to_pylist() == in_arrow
    parquet.write_table(table, tmp_path / "table.parquet")
    assert parquet.read_table(tmp_path / "table.parquet").column("value").to_pylist() == in_arrow


def test_a_name_that_arrow_does_not_have() -> None:
    table = ResultTable()
    table.add({"trial_id": "1", HALF: 0.5, f"{HALF}/list": [1]})
    assert table.arrow().schema.names == ["trial_id", "\\ud800", "\\ud800/list"]
    frame = table.pandas()
    assert list(frame.iloc[0]) == ["1", 0.5, [1]]
    assert list(frame.columns) == ["trial_id", HALF, f"{HALF}/list"]


def test_a_table_in_a_file_of_rows(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running experiment gets new results, and new keys, between two looks at it."""
    target = experiment / "all.csv"
    looks = iter([[{"trial_id": "1", "loss": 1}], [{"trial_id": "1", "loss": 1, "new": 2}]])
    monkeypatch.setattr(exporting, "_results", lambda *_: iter(next(looks)))
    exporting.export_results(experiment, to="csv", destination=target)
    assert target.read_text().splitlines() == ["trial_id,loss", "1,1"]
