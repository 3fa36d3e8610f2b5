"""Series stay bounded, files whole, and the ranking names what grows."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle
import re
from pathlib import Path

import pytest

from ray_tune_memguard import read_diagnosis, read_growth
from ray_tune_memguard.diagnostics import growth, ranking
from ray_tune_memguard.diagnostics.advice import Circumstances
from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
from ray_tune_memguard.diagnostics.findings import GrowingSite, Quantity, TypeGrowth
from ray_tune_memguard.diagnostics.growth import GrowthRow, GrowthSeries
from ray_tune_memguard.diagnostics.ranking import KnownSite, rank
from ray_tune_memguard.diagnostics.text import line, slope
from ray_tune_memguard.report.series_file import SeriesFile

MIB = 2.0**20
HOLDERS = {
    "Mine.kept": KnownSite("callback", "user", "python"),
    "Mine.few": KnownSite("callback", "user", "python"),
    "TuneController._trials": KnownSite("controller", "ray", "python"),
}


def series(until: int = 500, **slopes: float) -> GrowthSeries:
    """Samples every 25 trials; slopes in bytes per trial of the holders and parts named."""
    made = GrowthSeries()
    for trials in range(75, until + 1, 25):
        values = {("part", "rss"): 250 * MIB, ("part", "native rest"): 80 * MIB}
        values |= {("part", "slack"): 5 * MIB, ("part", "python rest"): 90 * MIB}
        values |= {("holder", name): 1000.0 for name in HOLDERS}
        for name, grows in slopes.items():
            key = next(key for key in values if key[1].replace(".", "_").replace(" ", "_") == name)
            values[key] += grows * trials
        made.add(trials, trials, values)
    return made


def names(found: GrowthSeries) -> list[str]:
    return [holder.name for holder in rank(found, HOLDERS, Circumstances()).holders]


def test_a_holder_is_named_with_its_slope() -> None:
    found = rank(series(Mine_kept=500.0), HOLDERS, Circumstances())
    [holder] = found.holders
    assert (holder.name, holder.part) == ("Mine.kept", "python")
    assert holder.bytes_per_trial == pytest.approx(500)
    assert "Your callback keeps +500 B per trial" in holder.advice


def test_a_table_that_grows_in_steps_is_named_by_its_entries() -> None:
    made = GrowthSeries()
    for trials in range(75, 1001, 25):
        step = 36_960.0 * 2 ** (trials // 350)
        entries = ("entries", "TuneController._trials")
        values = {("holder", "TuneController._trials"): step, entries: float(trials)}
        made.add(trials, trials, {("part", "rss"): 250 * MIB, **values})
    assert names(made) == ["TuneController._trials"]


def test_the_fastest_comes_first() -> None:
    found = series(Mine_kept=500.0, TuneController__trials=9000.0, Mine_few=100.0)
    assert names(found) == ["TuneController._trials", "Mine.kept", "Mine.few"]


def test_nothing_is_named_of_a_clean_sweep() -> None:
    assert names(series()) == []
    assert names(series(Mine_kept=10.0)) == []


def test_a_site_that_varies_must_grow_by_more() -> None:
    noisy = {name: dataclasses.replace(site, is_noisy=True) for name, site in HOLDERS.items()}
    for by, named in ((500.0, []), (1500.0, ["Mine.kept"])):
        found = rank(series(Mine_kept=by), noisy, Circumstances())
        assert [holder.name for holder in found.holders] == named


def test_nothing_is_named_too_early() -> None:
    assert names(series(until=250, Mine_kept=5000.0)) == []


def test_a_part_is_named_if_rss_shows_it() -> None:
    # What native memory gets while slack loses it is seen by nobody.
    assert names(series(native_rest=20_000.0)) == []
    assert names(series(native_rest=20_000.0, rss=20_000.0)) == ["native memory (unattributed)"]
    assert names(series(slack=20_000.0, rss=18_000.0)) == ["allocator slack"]
    # By so little it grows by itself.
    assert names(series(native_rest=3000.0, rss=3000.0)) == []


def test_fresh_actors_get_their_advice() -> None:
    grown = series(native_rest=12_000.0, rss=12_000.0)
    [fresh] = rank(grown, HOLDERS, Circumstances(reuse_actors=False)).holders
    assert "reuse_actors=True" in fresh.advice
    assert "11.7 KiB" in fresh.advice
    [reused] = rank(grown, HOLDERS, Circumstances(reuse_actors=True)).holders
    assert "reuse_actors" not in reused.advice


def test_few_long_trials_are_judged_by_their_results() -> None:
    made = GrowthSeries()
    for results in range(500, 12_001, 500):
        values = {("part", "rss"): 250 * MIB, ("holder", "Mine.kept"): 40.0 * results}
        made.add(results // 4000, results, values | {("type", "mine.Point"): results / 2})
    found = rank(made, HOLDERS, Circumstances())
    assert (found.unit, found.is_judged, found.span) == ("result", True, 9500)
    [holder] = found.holders
    assert holder.bytes_per_result == pytest.approx(40)
    assert holder.bytes_per_trial is None
    assert "Your callback keeps +40 B per result" in holder.advice
    assert [(kind.name, kind.slope) for kind in found.types] == [("mine.Point", 0.5)]
    assert "What grows, by bytes per result:" in str(found)
    assert "grows by +40 B per result" in line(holder, 2)


def test_many_results_do_not_make_a_short_sweep_long() -> None:
    made = GrowthSeries()
    for trials in range(1, 81, 4):  # 100 results each: more trials are to be expected.
        kept = 40_000.0 * min(trials, 60)
        made.add(trials, 100 * trials, {("part", "rss"): 250 * MIB, ("holder", "Mine.kept"): kept})
    found = rank(made, HOLDERS, Circumstances())
    assert (found.unit, found.is_judged, found.holders) == ("trial", False, [])


def test_what_was_cleared_is_not_named() -> None:
    made = series(Mine_kept=5000.0)
    assert names(made) == ["Mine.kept"]
    made.add(525, 525, {("part", "rss"): 250 * MIB, ("holder", "Mine.kept"): 1000.0})
    assert names(made) == []


def test_what_is_sampled_with_noise_was_not_cleared() -> None:
    made = GrowthSeries()
    for trials in range(75, 1001, 25):
        size = 30_000.0 + 36.0 * trials + (-1) ** (trials // 25) * 40_000.0
        entries = ("entries", "Mine.kept")
        values = {("holder", "Mine.kept"): size, entries: float(trials)}
        made.add(trials, trials, {("part", "rss"): 250 * MIB, **values})
    assert names(made) == ["Mine.kept"]


def test_a_table_that_is_empty_at_last_is_no_error() -> None:
    made = GrowthSeries()
    for trials in range(75, 1101, 25):
        step = 36_960.0 * 2 ** (trials // 350)
        count = 0.0 if trials == 1100 else float(trials)
        values = {("holder", "Mine.kept"): step, ("entries", "Mine.kept"): count}
        made.add(trials, trials, {("part", "rss"): 250 * MIB, **values})
    assert names(made) == []


def test_memory_of_a_long_series_is_bounded() -> None:
    made = GrowthSeries()
    for trials in range(10_000):
        made.add(trials, trials, {("holder", f"h{trials % 7}"): float(trials)})
    assert len(made.trials) <= growth.MAX_POINTS
    assert made.trials[-1] == 9999
    for trials in range(2000):
        made.add(10_000 + trials, 0, {("holder", f"other {trials}"): 1.0})
    assert len(made._values) <= growth.MAX_SERIES


@pytest.mark.parametrize("every", [1, 5, 25, 100])
def test_samples_are_spread_over_the_sweep_however_often_they_come(every: int) -> None:
    made = GrowthSeries()
    for trials in range(every, 10_001, every):
        made.add(trials, trials, {("holder", "stays"): 3.0 * trials})
    found = made.trend("holder", "stays")
    assert found is not None
    assert found.slope == 3.0
    assert made.is_long_enough
    assert made.span > 6000
    assert made.trials[0] == every
    after = [at for at in made.trials if at >= 2000]
    assert len(after) >= 8
    assert max(b - a for a, b in itertools.pairwise(after)) < 2000


def test_it_tells_when_a_sample_is_wanted() -> None:
    made = GrowthSeries(before=1000)
    assert made.wants(1000, 0)
    for trials in range(1025, 2001, 25):
        made.add(trials, 0, {})
    assert not made.wants(2000, 0)
    assert not made.wants(2010, 0)
    assert made.wants(2026, 0)
    made.add(2010, 0, {("holder", "early"): 7.0})  # Asked for.
    assert made.last("holder", "early") == 7.0
    made.add(2026, 0, {})
    assert 2010 not in made.trials
    assert math.isnan(made.last("holder", "early"))


def test_an_earlier_value_is_added() -> None:
    made = GrowthSeries()
    for results in range(1000, 9000, 1000):
        made.add(0, results, {("type", "mine.Point"): float(results)} if results > 2000 else {})
    made.complete("type", "mine.Point", (0, 2000), 5.0)
    made.complete("type", "mine.Point", (0, 3000), 5.0)
    assert list(made._values["type", "mine.Point"])[1:3] == [5.0, 3000.0]


def test_thinning_keeps_the_trend_and_forgets_who_left() -> None:
    made = GrowthSeries()
    for trials in range(0, 20_000, 25):
        values = {("holder", "stays"): 3.0 * trials}
        if 100 < trials < 300:
            values["holder", "left"] = 1.0
        made.add(trials, trials, values)
    found = made.trend("holder", "stays")
    assert found is not None
    assert found.slope == 3.0
    assert made.last("holder", "stays") == 3.0 * made.trials[-1]
    assert math.isnan(made.last("holder", "left"))
    assert math.isnan(made.last("holder", "nobody"))


def test_rows_load_as_a_frame(tmp_path: Path) -> None:
    folder = tmp_path / "memguard"
    SeriesFile(folder / "growth-b.csv", GrowthRow).add(
        [GrowthRow(2.0, 50, 50, "holder", "Mine.kept", 9.0)]
    )
    file = SeriesFile(folder / "growth-a.csv", GrowthRow)
    file.add([GrowthRow(1.0, 25, 25, "part", "rss", 7.5)])
    file.add([GrowthRow(1.5, 30, 30, "type", "größe.数据", 3.0)])
    frame = read_growth(tmp_path)
    assert frame["name"][1] == "größe.数据"
    assert list(frame["value"]) == [7.5, 3.0, 9.0]
    assert list(frame.columns) == ["time", "trials", "results", "kind", "name", "value"]
    assert len(read_growth(folder / "growth-a.csv")) == 2
    with pytest.raises(FileNotFoundError, match="No growth series"):
        read_growth(tmp_path / "nowhere")


DIAGNOSIS = Diagnosis(
    500,
    600,
    holders=[GrowingSite("Mine.kept", "python", 512.0, 3.0, 1e6, "Mine.kept → list[9]", "Stop.")],
    parts=[Quantity("rss", 250 * MIB, 600.0, 50.0, 500.0), Quantity("slack", 5 * MIB)],
    types=[TypeGrowth("builtins.dict", 5000, 1.0, 0.1, "Mine.kept → list[9] → dict")],
    processes=[Quantity("gcs_server", 60 * MIB, 19_000.0, 10.0, advice="Limit it.")],
    absent={"stacks": "this system does not tell"},
    cost_seconds=0.5,
)


def test_a_diagnosis_is_kept_whole(tmp_path: Path) -> None:
    DIAGNOSIS.save(tmp_path / "memguard" / "diagnosis-2026.json")
    assert read_diagnosis(tmp_path) == DIAGNOSIS
    assert pickle.loads(pickle.dumps(DIAGNOSIS)) == DIAGNOSIS
    with pytest.raises(FileNotFoundError, match="No diagnosis"):
        read_diagnosis(tmp_path / "nowhere")


def test_the_table_says_all_of_it() -> None:
    table = str(DIAGNOSIS)
    for text in (
        "500 trials and 600 results",
        "Mine.kept (python, 976.6 KiB)",
        "+512 ± 3 B",
        "Mine.kept → list[9]",
        "Stop.",
        "stacks",
        "this system does not tell",
        "builtins.dict",
        "gcs_server",
        "Limit it.",
    ):
        assert text in table
    assert all(len(row) <= 100 for row in table.splitlines())
    assert "Nothing grows steadily" in str(Diagnosis(500, 500, span=400, is_judged=True))


def test_a_short_sweep_is_told_how_long_judging_takes() -> None:
    found = rank(series(until=80), HOLDERS, Circumstances())
    assert not found.is_judged
    table = str(found)
    assert "?" not in table
    assert "250.0 MiB\n" in table
    assert (
        "Too early to tell what grows: after a warm-up of 100 trials it takes 200 trials more "
        "(or 4,000 results) and 5 samples. There is 1 sample over 0 trials."
    ) in " ".join(table.split())


def test_before_growth_is_judged_the_sites_that_grew_most_are_shown() -> None:
    made = GrowthSeries()
    for trials in (100, 297, 348, 400):
        values = {("part", "rss"): 250 * MIB, ("holder", "Mine.kept"): 50_000.0 * trials}
        made.add(trials, trials, values | {("holder", "Other.flat"): 9e6})
    found = rank(made, HOLDERS, Circumstances())
    assert (found.is_judged, found.samples, found.span, found.holders) == (False, 4, 300, [])
    [most] = found.most
    assert (most.name, most.per_trial) == ("Mine.kept", 50_000.0)
    table = str(found)
    assert "There are 4 samples over 300 trials." in " ".join(table.split())
    assert re.search(r"Mine\.kept +19\.1 MiB +\+48\.8 KiB per trial", table)
    assert "Mine.kept" in found._repr_html_()


def test_growth_of_rss_that_nothing_explains_is_no_all_clear() -> None:
    made = series(until=325, rss=26_000.0)
    for trials in (350, 400, 475):
        made.add(trials, trials, {("holder", "script.BOOK"): 20_000.0 * trials})
    found = rank(made, HOLDERS, Circumstances())
    # Of three samples nothing can be judged, whatever is known of others.
    assert (found.is_judged, found.holders) == (False, [])
    assert [site.name for site in found.most] == ["script.BOOK"]
    [unjudged] = found.unjudged
    assert (unjudged.name, unjudged.measured, unjudged.is_no_time) == ("script.BOOK", 3, False)
    table = " ".join(str(found).split())
    assert "RSS grows by +25.4 KiB per trial, and what holds it is not known yet." in table
    assert "Nothing grows" not in table
    assert "script.BOOK could not be judged: measured 3 times only (9.1 MiB)" in table
    assert "grew by +19.5 KiB per trial" in table


def without_time(measured_at: tuple[int, ...] = (), rss: float = 0.0) -> GrowthSeries:
    """Samples in which there was no time for a site, except in some; it grows by 12,742 bytes."""
    made = GrowthSeries()
    for trials in range(75, 401, 25):
        values = {("part", "rss"): 250 * MIB + rss * trials, ("holder", "Mine.few"): 273.0 * trials}
        site = "holder" if trials in measured_at else "unmeasured"
        made.add(trials, trials, values | {(site, "Mine.history"): 12_742.0 * trials})
    return made


NOISY = {"Mine.few": KnownSite("callback", "user", "python", is_noisy=True)}


@pytest.mark.parametrize("measured_at", [(), (150,), (300, 400), (75, 175, 250, 375)])
def test_a_site_without_time_is_never_an_all_clear(measured_at: tuple[int, ...]) -> None:
    found = rank(without_time(measured_at), NOISY, Circumstances())
    assert (found.is_judged, found.holders) == (False, [])
    assert [(site.name, site.is_no_time) for site in found.unjudged] == [("Mine.history", True)]
    for shown in (" ".join(str(found).split()), found._repr_html_()):
        assert "Nothing grows" not in shown
        assert "Mine.history could not be judged: too big to measure in time" in shown


def test_a_site_that_became_too_big_is_not_called_flat() -> None:
    made = GrowthSeries()
    for trials in range(75, 401, 25):
        site = "holder" if trials <= 275 else "unmeasured"
        made.add(trials, trials, {("part", "rss"): 250 * MIB, (site, "Mine.history"): 5000.0})
    found = rank(made, HOLDERS, Circumstances())
    assert not found.is_judged
    assert "(about 4.9 KiB, measured 8 times)." in " ".join(str(found).split())


def test_the_few_measurements_of_a_site_without_time_are_told() -> None:
    found = rank(without_time((300, 400)), NOISY, Circumstances())
    table = " ".join(str(found).split())
    assert "too big to measure in time (about 4.9 MiB, measured 2 times)" in table
    assert "It grew by +12.4 KiB per trial between its measurements" in table
    never = " ".join(str(rank(without_time(), NOISY, Circumstances())).split())
    assert "too big to measure in time (never measured)" in never


def test_a_site_that_is_measured_often_enough_is_judged() -> None:
    often = tuple(range(175, 401, 25))
    found = rank(without_time(often), NOISY, Circumstances())
    assert [site.name for site in found.holders] == ["Mine.history"]
    assert (found.is_judged, found.unjudged) == (True, [])


def test_a_site_without_time_is_told_beside_those_that_grow() -> None:
    found = rank(without_time(), HOLDERS, Circumstances())
    assert [site.name for site in found.holders] == ["Mine.few"]
    assert not found.is_judged
    assert "Mine.history could not be judged" in " ".join(str(found).split())


def test_growth_of_rss_is_first_blamed_on_what_there_was_no_time_for() -> None:
    found = rank(without_time(rss=20_000.0), HOLDERS, Circumstances())
    found = dataclasses.replace(
        found, holders=[], most=[Quantity("TrialPruner._state", 4000.0, 273.0)]
    )
    said = found.unexplained()
    assert said.startswith(
        "RSS grows by +19.5 KiB per trial, and there was no time to measure Mine.history; suspect "
        "it first."
    )
    assert "TrialPruner" not in said
    assert "growth_budget" not in said
    table = " ".join(str(found).split())
    assert "what holds it is not known yet. Suspect Mine.history first" in table
    assert "TrialPruner" not in table


def test_a_site_that_grows_is_told_before_rss_shows_it() -> None:
    found = rank(without_time((300, 400)), NOISY, Circumstances())
    assert found.unexplained().startswith("Mine.history could not be judged: too big to measure")
    assert rank(without_time(), NOISY, Circumstances()).unexplained() == ""


def test_what_explains_less_than_a_tenth_is_no_suspect() -> None:
    few = Quantity("TrialPruner._state", 4000.0, 273.0)
    big = Quantity("script.BOOK", 4e6, 9000.0)
    rss = Quantity("rss", 300 * MIB, 20_000.0)
    said = Diagnosis(400, 400, parts=[rss], most=[big, few]).unexplained()
    assert "Fastest so far: script.BOOK (+8.8 KiB)." in said
    assert "TrialPruner" not in said


def test_an_estimated_size_is_said_to_be_one() -> None:
    known = {"Mine.kept": dataclasses.replace(HOLDERS["Mine.kept"], is_estimated=True)}
    found = rank(series(Mine_kept=5000.0), known, Circumstances())
    assert found.holders[0].is_estimated
    assert "Mine.kept (python, about 2.4 MiB)" in str(found)
    assert "about 2.4 MiB" in found._repr_html_()


def test_the_unjudged_are_kept_with_the_diagnosis(tmp_path: Path) -> None:
    found = rank(without_time((300, 400)), NOISY, Circumstances())
    found.save(tmp_path / "memguard" / "diagnosis-2026.json")
    assert read_diagnosis(tmp_path).unjudged == found.unjudged


def test_columns_of_sites_without_time_are_bounded() -> None:
    made = GrowthSeries()
    for trials in range(2000):
        made.add(trials, trials, {("unmeasured", f"site {trials}"): 0.0})
    assert len(made._values) <= growth.MAX_SERIES


def test_a_slope_that_is_noise_is_not_shown() -> None:
    noise = Quantity("workers", 500.0 * MIB, -86_000.0, 775_000.0)
    flat = Quantity("raylet", 50.0 * MIB, 3.0, 200.0)
    table = str(Diagnosis(500, 500, span=400, is_judged=True, processes=[noise, flat]))
    assert "±" not in next(row for row in table.splitlines() if "workers" in row)
    assert "+3 ± 200 B per trial" in table


def test_slopes_over_few_trials_are_noise_and_not_given() -> None:
    made = GrowthSeries()
    for trials in range(1, 41):
        made.add(trials, trials, {("part", "rss"): 250 * MIB + 5000.0 * trials})
    [rss] = rank(made, HOLDERS, Circumstances()).parts
    assert (rss.per_trial, rss.uncertainty, rss.per_result) == (None, None, None)
    for trials in range(41, 120):
        made.add(trials, trials, {("part", "rss"): 250 * MIB + 5000.0 * trials})
    [rss] = rank(made, HOLDERS, Circumstances()).parts
    assert rss.per_trial == pytest.approx(5000)


def test_what_could_not_be_measured_is_said_to_be_why_nothing_is_judged() -> None:
    found = Diagnosis(500, 500, span=400, absent={"sizes": "partial: no time for Mine.kept"})
    assert "Growth cannot be judged: not everything could be measured." in str(found)


def test_the_line_fits_a_terminal() -> None:
    long = GrowingSite("X" * 30, "python", 2048.0, 1.0, 1.0, " → ".join(["dict"] * 40))
    assert len(line(long, 500)) <= 100
    assert line(long, 500).startswith("trial#500  XXX")
    short = GrowingSite("Mine.kept", "python", 2048.0, 1.0, 1.0, "Mine.kept → list[9]")
    assert line(short, 500) == "trial#500  Mine.kept grows by +2.0 KiB per trial  (list[9])"
    path = "Journal.entries → list[900] → dict[2] → Record → dict[5] → list[3] → bytes"
    middle = GrowingSite("Journal.entries", "python", 50_000.0, 1.0, 1.0, path)
    assert line(middle, 900) == (
        "trial#900  Journal.entries grows by +48.8 KiB per trial  "
        "(list[900] → dict[2] → Record → … → bytes)"
    )


def test_slopes_in_words() -> None:
    assert slope(12.4, 3.0) == "+12 ± 3 B"
    assert slope(-3000.0, 1024.0) == "-2.9 ± 1.0 KiB"
    assert slope(None, None) == "?"


def test_what_types_explain_is_not_named_twice() -> None:
    rest = GrowingSite(ranking.UNATTRIBUTED_NAMES["python"], "python", 5000.0, 1.0, 1.0)
    cycles = GrowingSite("unreachable Node", "python", 4500.0, 1.0, 1.0)
    found = ranking.explained(Diagnosis(1, 1, holders=[rest]), [cycles])
    assert found.holders == [cycles]
    few = GrowingSite("unreachable Node", "python", 500.0, 1.0, 1.0)
    assert ranking.explained(Diagnosis(1, 1, holders=[rest]), [few]).holders == [rest, few]


def test_a_shorter_span_is_judged_where_it_is_enough() -> None:
    made = GrowthSeries(min_span=100)
    for trials in range(0, 201, 25):
        made.add(trials, trials, {("part", "rss"): 1000.0 * trials})
    assert made.is_long_enough
    assert made.span == 150
    assert not series(until=200).is_long_enough


def test_rss_that_grows_without_a_known_holder_is_one_line() -> None:
    made = GrowthSeries()
    for trials in (100, 297, 348, 400):
        values = {("part", "rss"): 250 * MIB + 30_000.0 * trials}
        made.add(trials, trials, values | {("holder", "Mine.kept"): 20_000.0 * trials})
    found = rank(made, HOLDERS, Circumstances())
    # By four samples there is no slope.
    assert found.unexplained() == ""
    made.add(425, 425, {("part", "rss"): 250 * MIB + 30_000.0 * 425})
    found = dataclasses.replace(rank(made, HOLDERS, Circumstances()), is_judged=False, holders=[])
    assert found.unexplained().startswith("RSS grows by +29.3 KiB per trial, and there were too")
    known = rank(series(Mine_kept=5000.0), HOLDERS, Circumstances())
    assert known.unexplained() == ""
    assert Diagnosis(500, 500, is_judged=True).unexplained() == ""
