from __future__ import annotations

from pathlib import Path

import pytest

from ray_tune_memguard import plot_rss_series, read_rss_series
from ray_tune_memguard.report.series import RssPoint, RssSeries, least_squares_slope

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


def test_slope_is_by_least_squares() -> None:
    assert least_squares_slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert least_squares_slope([(0, 0), (1, 1), (2, 0)]) == pytest.approx(0)
    assert least_squares_slope([]) is None


def test_memory_of_a_long_series_is_bounded(tmp_path: Path) -> None:
    series = RssSeries(tmp_path / "rss-a.csv")
    for trials in range(200):
        series.add(RssPoint(float(trials), trials, trials, 0, MIB))
    assert len(series.recent) == 31
    assert len(read_rss_series(tmp_path)) == 200


def test_all_runs_of_an_experiment_are_read_in_order(tmp_path: Path) -> None:
    later = RssSeries(tmp_path / "memguard" / "rss-a.csv")
    later.add(RssPoint(20.0, 30, 28, 2, MIB))
    earlier = RssSeries(tmp_path / "memguard" / "rss-b.csv")
    earlier.add(RssPoint(10.0, 10, 10, 0, MIB))
    for path in (tmp_path, tmp_path / "memguard"):
        frame = read_rss_series(path)
        assert list(frame.trials) == [10, 30]
        assert list(frame.columns) == ["time", "trials", "completed", "errored", "rss_bytes"]
    assert list(read_rss_series(later.path).errored) == [2]


def test_no_series_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No RSS series"):
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
