"""``iter_results`` and ``read_results``, of files as Ray's loggers write them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pytest

from ray_tune_memguard import iter_results, read_results
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
