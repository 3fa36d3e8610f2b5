"""A notebook that runs a sweep: its cells show tables, and are not flooded."""

from __future__ import annotations

import nbclient
import nbformat
import pytest
import ray

pytestmark = pytest.mark.latest_only

TRIALS = 20
SWEEP = """
grid = tune.Tuner(
    lambda config: tune.report({{"score": config["x"]}}),
    param_space={{"x": tune.uniform(0, 1)}},
    tune_config=tune.TuneConfig(num_samples={trials}, reuse_actors=True, max_concurrent_trials=4),
    run_config=tune.RunConfig(storage_path={storage!r}, callbacks=[guard]),
).fit()
"""
CELLS = {
    "begin": """
import ray
from ray import tune
from ray_tune_memguard import MemGuard, read_deaths, read_trial_memory
from ray_tune_memguard.system import progress_bar

ray.init({address!r}, log_to_driver=False, logging_level="ERROR")
guard = MemGuard(every_trials=5, growth_budget=1.0, sample_every_trials=5)
""",
    "sweep": SWEEP,
    "diagnosis": "guard.tracker.diagnosis()",
    "deaths": "read_deaths(grid.experiment_path)",
    "memory": "read_trial_memory(grid.experiment_path)",
    # As if reading took long.
    "reading": "progress_bar.SHOW_AFTER_S = 0\nframe = grid.get_dataframe()",
    "end": "ray.shutdown()",
}


def shown(cell: nbformat.NotebookNode, kind: str) -> list[str]:
    """The outputs of a cell of this kind: a MIME type, or the name of a stream."""
    return [
        output.text if output.output_type == "stream" else output.data[kind]
        for output in cell.outputs
        if output.get("name") == kind or kind in output.get("data", {})
    ]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, nbformat.NotebookNode]:
    """The cells by name, with what they show, after the notebook has run on the tests' cluster."""
    values = {
        "address": ray.get_runtime_context().gcs_address,
        "storage": str(tmp_path_factory.mktemp("storage")),
        "trials": TRIALS,
    }
    sources = [source.format(**values) for source in CELLS.values()]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in sources])
    # The kernel `python3` is the interpreter of this test.
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    return dict(zip(CELLS, notebook.cells, strict=True))


@pytest.mark.slow
def test_the_cell_of_a_sweep_is_not_flooded(cells: dict[str, nbformat.NotebookNode]) -> None:
    # Of four lines about RSS, the last one.
    plain = shown(cells["sweep"], "text/plain")
    assert [text for text in plain if f"trial#{TRIALS}  RSS" in text] == plain[-1:]
    assert "  RSS " not in "".join(shown(cells["sweep"], "stderr"))
    # Ray's table of trials, once.
    assert len([html for html in shown(cells["sweep"], "text/html") if "Tune Status" in html]) == 1
    assert len(cells["sweep"].outputs) < 8


def test_a_diagnosis_is_a_table(cells: dict[str, nbformat.NotebookNode]) -> None:
    (html,) = shown(cells["diagnosis"], "text/html")
    assert f"Memory of the driver after {TRIALS} trials" in html
    assert '<td style="text-align: left">rss</td>' in html


def test_deaths_and_trial_memory_are_tables(cells: dict[str, nbformat.NotebookNode]) -> None:
    assert shown(cells["deaths"], "text/html") == ["<p>No trial has died.</p>"]
    (memory,) = shown(cells["memory"], "text/html")
    assert "peak_rss_bytes" in memory
    assert "config/x" in memory


def test_a_progress_bar_is_one_line(cells: dict[str, nbformat.NotebookNode]) -> None:
    bars = "".join(shown(cells["reading"], "stderr"))
    assert "Reading results" in bars
    assert "\n" not in bars.strip()
    assert "Warning" not in bars
