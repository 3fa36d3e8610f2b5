from __future__ import annotations

import errno
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from ray_tune_memguard import RssReporter, plot_rss_series, read_rss_series
from ray_tune_memguard.report.line import fit_line
from ray_tune_memguard.report.series import RssPoint, RssSeries
from ray_tune_memguard.report.series_file import SeriesFile

MIB = 2**20


def test_the_line_is_in_units_that_a_person_reads(tmp_path: Path) -> None:
    series = RssSeries(tmp_path / "rss-a.csv")
    series.add(RssPoint(0.0, 100, 100, 0, 231 * MIB))
    assert series.line() == "trial#100  RSS 231 MiB"
    for trials in (200, 300, 400):
        series.add(RssPoint(0.0, trials, trials, 0, 231 * MIB + (trials - 100) * 100))
    assert series.line() == "trial#400  RSS 231 MiB  (+0.1 KiB/trial over the last 300)"


def test_no_slope_without_two_numbers_of_trials(tmp_path: Path) -> None:
    series = RssSeries(tmp_path / "rss-a.csv")
    for _ in range(3):
        series.add(RssPoint(0.0, 5, 5, 0, MIB))
    assert series.line() == "trial#5  RSS 1 MiB"


def test_a_slope_over_few_trials_is_noise_and_not_shown(tmp_path: Path) -> None:
    series = RssSeries(tmp_path / "rss-a.csv")
    for trials in range(5, 51, 5):
        series.add(RssPoint(0.0, trials, trials, 0, MIB))
    assert series.line() == "trial#50  RSS 1 MiB"
    series.add(RssPoint(0.0, 55, 55, 0, MIB))
    assert series.line() == "trial#55  RSS 1 MiB  (+0.0 KiB/trial over the last 50)"


@pytest.mark.parametrize(("finished", "lines"), [(10, [5, 10]), (12, [5, 10, 12]), (0, [0])])
def test_the_last_line_is_not_said_twice(
    finished: int, lines: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    trials = [SimpleNamespace(trial_id=str(n), status="PENDING") for n in range(finished)]
    reporter = RssReporter(every_trials=5)
    reporter.setup()
    with caplog.at_level(logging.INFO, logger="ray_tune_memguard"):
        reporter.on_step_begin(iteration=0, trials=trials)
        for number, trial in enumerate(trials):
            trial.status = "TERMINATED"
            reporter.on_trial_complete(iteration=number, trials=trials, trial=trial)
            reporter.on_step_end(iteration=number, trials=trials)
        reporter.on_experiment_end(trials=trials)
    said = [record.getMessage().split()[0] for record in caplog.records]
    assert said == [f"trial#{number}" for number in lines]


def test_slope_is_by_least_squares() -> None:
    steep, flat = fit_line([0, 1, 2], [1, 3, 5]), fit_line([0, 1, 2], [0, 1, 0])
    assert steep is not None
    assert flat is not None
    assert (steep.slope, flat.slope) == (pytest.approx(2), pytest.approx(0))
    assert fit_line([], []) is None
    assert fit_line([3, 3], [1, 2]) is None
    two = fit_line([0, 1, 2], [1, math.nan, 5])
    assert two is not None
    assert (two.slope, two.uncertainty) == (pytest.approx(2), math.inf)


def test_memory_of_a_long_series_is_bounded(tmp_path: Path) -> None:
    series = RssSeries(tmp_path / "rss-a.csv")
    for trials in range(200):
        series.add(RssPoint(float(trials), trials, trials, 0, MIB))
    assert len(series.recent) == 31
    assert len(read_rss_series(tmp_path)) == 200


def test_all_runs_of_an_experiment_are_read_in_order(tmp_path: Path) -> None:
    later = RssSeries(tmp_path / ".memguard" / "rss-a.csv")
    later.add(RssPoint(20.0, 30, 28, 2, MIB))
    # Where earlier versions put it.
    earlier = RssSeries(tmp_path / "memguard" / "rss-b.csv")
    earlier.add(RssPoint(10.0, 10, 10, 0, MIB))
    frame = read_rss_series(tmp_path)
    assert list(frame.trials) == [10, 30]
    assert list(frame.columns) == ["time", "trials", "completed", "errored", "rss_bytes"]
    assert list(read_rss_series(tmp_path / ".memguard").trials) == [30]
    assert list(read_rss_series(later.path).errored) == [2]


def test_a_path_may_begin_with_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    point = RssPoint(0.0, 5, 5, 0, MIB)
    RssSeries(tmp_path / "sweep" / ".memguard" / "rss-a.csv").add(point)
    assert len(read_rss_series("~/sweep")) == 1


def test_no_series_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No RSS series"):
        read_rss_series(tmp_path)


def times(path: Path) -> list[float]:
    return list(read_rss_series(path).time)


def tear(file: SeriesFile[RssPoint], written: int) -> None:
    """Add a row of which only so many characters reach a full disk."""
    before = file.path.stat().st_size if file.path.exists() else 0

    def rows() -> Iterator[RssPoint]:
        yield RssPoint(9.0, 90, 90, 0, 9 * MIB)
        raise OSError(errno.ENOSPC, "planned")

    with pytest.raises(OSError, match="planned"):
        file.add(rows())
    os.truncate(file.path, before + written)


@pytest.mark.parametrize("written", [0, 1, 7, 18])
def test_a_row_that_a_full_disk_has_torn_spoils_no_other(tmp_path: Path, written: int) -> None:
    file = SeriesFile(tmp_path / "rss-a.csv", RssPoint)
    file.add([RssPoint(1.0, 10, 10, 0, MIB)])
    tear(file, written)
    file.add([RssPoint(2.0, 20, 20, 0, MIB)])
    assert times(tmp_path) == [1.0, 2.0]


@pytest.mark.parametrize("written", [0, 1, 20])
def test_a_torn_header_is_written_again(tmp_path: Path, written: int) -> None:
    file = SeriesFile(tmp_path / "rss-a.csv", RssPoint)
    tear(file, written)
    file.add([RssPoint(2.0, 20, 20, 0, MIB)])
    assert times(tmp_path) == [2.0]


@pytest.mark.parametrize("torn", ["1.5,1", "1.5,15,15,0,1048", '"1.5', "1"])
def test_of_a_row_without_its_end_nothing_counts(tmp_path: Path, torn: str) -> None:
    file = SeriesFile(tmp_path / "rss-a.csv", RssPoint)
    file.add([RssPoint(1.0, 10, 10, 0, MIB)])
    with file.path.open("a", newline="") as end:
        end.write(torn)
    assert times(tmp_path) == [1.0]


@pytest.mark.parametrize(
    "damaged", ["1.5,15,15,0,1048576,2.5,25,25,0,1", "1.5,15", "1.5,x,15,0,1", '1.5,"15,15,0,1', ""]
)
def test_a_damaged_row_is_skipped(tmp_path: Path, damaged: str) -> None:
    file = SeriesFile(tmp_path / "rss-a.csv", RssPoint)
    file.add([RssPoint(1.0, 10, 10, 0, MIB)])
    with file.path.open("a") as end:
        end.write(f"{damaged}\n")
    file.add([RssPoint(2.0, 20, 20, 0, MIB)])
    assert times(tmp_path) == [1.0, 2.0]


@pytest.mark.parametrize("text", ["", "time,tri", "time,trials\n1,2\n"])
def test_a_file_without_rows_does_not_hide_the_other_runs(tmp_path: Path, text: str) -> None:
    SeriesFile(tmp_path / "rss-a.csv", RssPoint).add([RssPoint(1.0, 10, 10, 0, MIB)])
    (tmp_path / "rss-b.csv").write_text(text)
    assert times(tmp_path) == [1.0]


def test_a_file_of_damaged_rows_alone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rss-a.csv").write_text("time,trials,completed,errored,rss_bytes\n1,2,3,4,x\n")
    with pytest.raises(ValueError, match="no intact row"):
        read_rss_series(tmp_path)


def test_series_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, grows in (("alone", 40_000), ("guarded", 0)):
        series = RssSeries(tmp_path / name / "memguard" / "rss-a.csv")
        for trials in (100, 200, 300):
            series.add(RssPoint(float(trials), trials, trials, 0, 200 * MIB + grows * trials))
    image = tmp_path / "new" / "rss.png"
    paths = {"Ray alone": tmp_path / "alone", "MemGuard": tmp_path / "guarded"}
    figure = plot_rss_series(paths, image)
    assert image.read_bytes().startswith(b"\x89PNG")
    first, second = figure.axes[0].lines
    assert (first.get_label(), second.get_label()) == ("Ray alone", "MemGuard")
    assert list(first.get_xdata()) == [100, 200, 300]
    assert list(second.get_ydata()) == [200, 200, 200]
    [again] = plot_rss_series({"read": read_rss_series(paths["MemGuard"])}, image).axes[0].lines
    assert list(again.get_ydata()) == [200, 200, 200]
    [line] = plot_rss_series(tmp_path / "alone", image).axes[0].lines
    assert line.get_ydata()[-1] == pytest.approx(200 + 12_000_000 / MIB)
    with pytest.raises(ValueError, match="experiments is empty"):
        plot_rss_series({}, image)
    with pytest.raises(FileNotFoundError, match="No RSS series"):
        plot_rss_series(tmp_path / "nowhere", image)


def test_a_flat_series_is_not_drawn_on_the_frame(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    frame = pd.DataFrame({"trials": [100, 200, 300], "rss_bytes": [230 * MIB] * 3})
    [axes] = plot_rss_series({"MemGuard": frame}, tmp_path / "rss.png").axes
    bottom, top = axes.get_ylim()
    assert bottom == 0
    assert top > 1.1 * 230


def test_the_labels_of_the_demo_are_inside_its_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from examples import demo

    trials = [0, 100, 200, 300]
    grows = pd.DataFrame({"trials": trials, "rss_bytes": [(200 + n / 3) * MIB for n in trials]})
    flat = pd.DataFrame({"trials": trials, "rss_bytes": [200 * MIB] * 4})
    figure = demo.draw(
        demo.Run("Ray alone", grows, 420 * MIB, 60.0),
        demo.Run("with MemGuard", flat, 201 * MIB, 60.0),
        tmp_path / "rss.png",
    )
    [axes] = figure.axes
    frame = axes.get_window_extent()
    assert len(axes.texts) == 2
    for label in axes.texts:
        box = label.get_window_extent()
        assert label.get_text() == "after fit()"
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1
        assert frame.y0 <= box.y0 < box.y1 <= frame.y1
