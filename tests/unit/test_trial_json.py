"""What is written of a trial is, read again, what Ray writes of it."""

from __future__ import annotations

import json
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.cloudpickle import CloudPickler
from ray.train._internal.storage import StorageContext
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.experiment import Trial
from ray.tune.experimental import output

from ray_tune_memguard.adapter.serialization import unpickling
from ray_tune_memguard.adapter.serialization.json_text import decode
from ray_tune_memguard.adapter.serialization.metric_queues import pickled_queues
from ray_tune_memguard.adapter.serialization.state_record import (
    reported_in_record,
    row_of_record,
    state_record,
)
from ray_tune_memguard.adapter.serialization.templates import StorageTemplate
from ray_tune_memguard.adapter.serialization.trial_json import StateWriter
from ray_tune_memguard.adapter.serialization.trial_pickle import TrialStateCodec

REPORTS: dict[str, list[dict[str, Any]]] = {
    "one report": [{"score": 0.5, "done": True}],
    "more than are kept": [{"score": 1.0 / n, "step": n} for n in range(1, 25)],
    "numbers of NumPy": [{"a": np.float32(0.1), "b": np.float64(0.1), "c": np.int64(2**60)}] * 3,
    "numbers of others": [{"part": Fraction(1, 3)}],
    "names that are no text": [{"score": 0.5, 5: 1.0}],
    "not a number": [{"score": float("nan"), "best": float("inf")}] * 2,
    "nested": [{"eval": {"loss": 1.0, "by class": {"cat": 2}}, "note": "text", "pair": (1, 2)}],
    "nothing": [],
}


def make_trial(tmp_path: Path, number: int = 0, name: str = "trial") -> Trial:
    storage = StorageContext(str(tmp_path), "experiment", trial_dir_name=name)
    trial = Trial(
        "trainable",
        config={"x": number, "layers": (8, 8)},
        trial_id=f"abc_{number:05d}",
        storage=storage,
        stub=True,
        placement_group_factory=PlacementGroupFactory([{"CPU": 1}]),
    )
    trial.create_placement_group_factory()
    return trial


def in_words(value: Any) -> Any:
    """A value in which objects are told by what they consist of."""
    if isinstance(value, dict):
        return {key: in_words(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [in_words(part) for part in value]
    if hasattr(value, "__dict__"):
        return type(value).__name__, in_words(value.__dict__)
    words = repr(value)
    return type(value).__name__, "" if " at 0x" in words else words


def decoded(texts: tuple[str, str]) -> Any:
    return [in_words(decode(text)) for text in texts]


@pytest.mark.parametrize("reports", REPORTS.values(), ids=REPORTS)
def test_it_is_what_ray_writes(tmp_path: Path, reports: list[dict[str, Any]]) -> None:
    trial = make_trial(tmp_path)
    for report in reports:
        trial.update_last_result(dict(report))
    expected = decoded(trial.get_json_state())
    trial.invalidate_json_state()
    trial.run_metadata.invalidate_cache()
    for writer in (StateWriter(), _used_writer(tmp_path)):
        trial.run_metadata.invalidate_cache()
        assert decoded(written(trial, writer)) == expected


def written(trial: Trial, writer: StateWriter | None = None) -> tuple[str, str]:
    return (writer or StateWriter()).write(trial, pickled_queues(trial.run_metadata))


def _used_writer(tmp_path: Path) -> StateWriter:
    writer = StateWriter()
    other = make_trial(tmp_path, 7, "other")
    other.update_last_result({"score": 1})
    written(other, writer)
    return writer


@pytest.mark.parametrize("number", [int, float, np.float64, np.float32, np.int64, np.int32])
def test_queues_of_usual_numbers_are_one_pickle(tmp_path: Path, number: Any) -> None:
    trial = make_trial(tmp_path)
    trial.update_last_result({"score": number(1)})
    raw = pickled_queues(trial.run_metadata)
    assert raw is not None
    queues = pickle.loads(raw)
    assert queues == trial.run_metadata.metric_n_steps
    assert type(queues["score"]["5"][0]) is number


@pytest.mark.parametrize("kept", [None, 5, {"score": lambda: 0}], ids=["none", "number", "other"])
def test_queues_that_are_kept_in_another_way_are_left_to_ray(tmp_path: Path, kept: Any) -> None:
    metadata = make_trial(tmp_path).run_metadata
    metadata.__dict__["metric_n_steps"] = kept
    assert pickled_queues(metadata) is None
    assert pickled_queues(object()) is None


def test_ray_reads_it(tmp_path: Path) -> None:
    trial = make_trial(tmp_path)
    for step in range(7):
        trial.update_last_result({"score": float(step)})
    state, metadata = written(trial)
    read = Trial.from_json_state(state, stub=True)
    read.restore_run_metadata(metadata)
    assert read.metric_analysis == trial.metric_analysis
    assert read.run_metadata.metric_n_steps == trial.run_metadata.metric_n_steps
    read.update_last_result({"score": 9.0})
    trial.update_last_result({"score": 9.0})
    assert read.metric_analysis == trial.metric_analysis


@pytest.mark.parametrize(
    "names", [("short", "other"), ("a", "a longer one, äöü"), ("x" * 5, "y" * 5), ("x" * 300, "z")]
)
def test_storages_that_differ_by_the_directory(tmp_path: Path, names: tuple[str, ...]) -> None:
    storages = StorageTemplate()
    first = make_trial(tmp_path, 0, names[0]).storage
    storages.key_of(first)
    for name in (*names, *names):
        storage = _like(first, name)
        state = decode(json.dumps(_marked(storages.text_of(storage))))
        assert in_words(state) == in_words(storage)
        place = storages.key_of(storage)
        assert place is not None
        assert in_words(storages.at(place)) == in_words(storage)


@pytest.mark.parametrize(
    ("part", "value"),
    [(("storage_fs_path",), "/somewhere/else"), (("syncer", "last_sync_up_time"), 12.5)],
)
def test_a_storage_that_differs_in_more_is_written_for_itself(
    tmp_path: Path, part: tuple[str, ...], value: Any
) -> None:
    storages = StorageTemplate()
    first = make_trial(tmp_path, 0, "first").storage
    storages.key_of(first)
    other = _like(first, "other")
    setattr(getattr(other, part[0]) if part[1:] else other, part[-1], value)
    assert storages.key_of(other) is None
    state = decode(json.dumps(_marked(storages.text_of(other))))
    assert in_words(state) == in_words(other)


def _like(storage: Any, name: str) -> Any:
    import copy

    like = copy.copy(storage)
    # Starting a trial gives it one of its own.
    like.syncer = copy.copy(storage.syncer)
    like.trial_dir_name = name
    like.current_checkpoint_index = len(name) % 3
    return like


def _marked(text: str) -> dict[str, str]:
    return {"_type": "CLOUDPICKLE_FALLBACK", "value": text}


def test_an_entry_tells_what_was_reported(tmp_path: Path) -> None:
    trial = make_trial(tmp_path)
    trial.update_last_result({"score": np.float32(0.5), "lr": 0.1})
    entry = written(trial)
    result, summaries = reported_in_record(entry[1])
    assert result["score"] == np.float32(0.5)
    assert summaries == trial.metric_analysis
    row = row_of_record(*entry, json.dumps(entry))
    assert (row.trial_id, row.status, row.has_error) == ("abc_00000", "PENDING", False)


@pytest.mark.parametrize(
    "config",
    [{"say": 'a "word" \\ \x7f'}, {"name": "Zürich \u2028 \x01"}, {"lines": "one\ntwo"}],
    ids=str,
)
def test_an_entry_is_what_json_makes_of_both_texts(tmp_path: Path, config: dict[str, Any]) -> None:
    trial = make_trial(tmp_path)
    trial.config = config
    trial.update_last_result({"score": 1.0})
    for texts in (written(trial), ("é", "\n"), trial.get_json_state()):
        entry = state_record(*texts)
        assert entry.isascii()
        assert json.loads(entry) == list(texts)


@pytest.mark.parametrize("reports", REPORTS.values(), ids=REPORTS)
def test_what_is_loaded_is_what_was_dumped(tmp_path: Path, reports: list[dict[str, Any]]) -> None:
    trial = make_trial(tmp_path)
    for report in reports:
        trial.update_last_result(dict(report))
    codec = TrialStateCodec(trial.storage)
    assert in_words(codec.load(codec.dump(trial))) == in_words(trial.__dict__)


@pytest.mark.parametrize("reports", REPORTS.values(), ids=REPORTS)
@pytest.mark.parametrize("name", [None, "my/trial"])
def test_a_report_on_a_record_shows_what_it_shows_of_the_trial(
    tmp_path: Path, reports: list[dict[str, Any]], name: str | None
) -> None:
    trial = make_trial(tmp_path)
    trial.custom_trial_name = name
    trial.config = {"env": "cart/pole", "nested": {"part": Fraction(1, 3), "n": [float("nan")]}}
    for report in reports:
        trial.update_last_result(dict(report))
    trial.status = "TERMINATED"
    codec = TrialStateCodec(trial.storage, stub=True)
    record = state_record(*codec.json_state(trial))
    whole, part = (object.__new__(Trial) for _ in range(2))
    whole.__dict__.update(codec.load_state_record(record))
    part.__dict__.update(codec.load_record_for_report(record))
    keys = ["env", "nested/part", "nested/n", "missing"]
    shown = [output._get_trial_info(one, keys, ["score", "part", "pair"]) for one in (whole, part)]
    assert shown[0] == shown[1]
    assert in_words(part.last_result) == in_words(whole.last_result)
    assert in_words(part.config) == in_words(whole.config)


def test_a_config_that_is_resolved_is_shown_resolved(tmp_path: Path) -> None:
    trial = make_trial(tmp_path)

    def resolve(read: Trial) -> None:
        read.config = {"x": "resolved"}

    codec = TrialStateCodec(trial.storage, prepare=resolve, resolves_config=True, stub=True)
    record = state_record(*codec.json_state(trial))
    assert codec.load_record_for_report(record)["config"] == {"x": "resolved"}


def test_resources_that_differ_from_those_of_others_are_kept(tmp_path: Path) -> None:
    resources = [{"CPU": 1}], [{"CPU": 1}], [{"CPU": 1}, {"GPU": 2}], [{"CPU": 3}], [{"CPU": 1}]
    trials = [make_trial(tmp_path, number) for number in range(len(resources))]
    codec = TrialStateCodec(trials[0].storage)
    dumped = []
    for trial, bundles in zip(trials, resources, strict=True):
        trial.placement_group_factory = PlacementGroupFactory(bundles)
        dumped.append(codec.dump(trial))
    loaded = [codec.load(raw)["placement_group_factory"] for raw in dumped]
    assert loaded == [trial.placement_group_factory for trial in trials]
    assert [one.required_resources for one in loaded] == [
        trial.placement_group_factory.required_resources for trial in trials
    ]
    assert loaded[0] is not loaded[1]


def test_resources_that_cannot_be_compared_are_kept(tmp_path: Path) -> None:
    trial = make_trial(tmp_path)
    trial.placement_group_factory._weights = np.arange(3)
    codec = TrialStateCodec(trial.storage)
    for _ in range(2):
        loaded = codec.load(codec.dump(trial))["placement_group_factory"]
        assert loaded._weights.tolist() == [0, 1, 2]


class TwoArguments(Exception):
    """Can be pickled, and not read back."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


class Proxy:
    def __init__(self, inner: object) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Lossy:
    """Loses its value, unless Ray's serializer for it is used."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return Lossy, (0,)


@pytest.mark.parametrize("value", [TwoArguments(3, "diverged"), Proxy([1])], ids=type)
@pytest.mark.parametrize("beside", [None, lambda: 1], ids=["plain", "by cloudpickle"])
def test_a_trial_that_cannot_be_read_back_is_not_written(
    tmp_path: Path, value: object, beside: object
) -> None:
    trial = make_trial(tmp_path)
    trial.why = [beside, value]
    codec = TrialStateCodec(trial.storage)
    for _ in range(2):
        with pytest.raises((TypeError, RecursionError)):
            codec.row(trial, None, 0)
        with pytest.raises((TypeError, RecursionError)):
            codec.dump(trial)


def test_a_serializer_of_the_users_is_used(tmp_path: Path) -> None:
    trial = make_trial(tmp_path)
    trial.config = {"kept": Lossy(5)}
    codec = TrialStateCodec(trial.storage)
    register = CloudPickler.dispatch
    register[Lossy] = lambda value: (Lossy, (value.value,))
    try:
        assert codec.load(codec.dump(trial))["config"]["kept"].value == 5
    finally:
        register.pop(Lossy)


def test_types_that_were_read_back_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, read = unpickling.load_second, []
    monkeypatch.setattr(unpickling, "load_second", lambda raw: [load(raw), read.append(raw)][0])
    codec = TrialStateCodec(make_trial(tmp_path).storage)
    for number in range(4):
        trial = make_trial(tmp_path, number)
        trial.config = {"part": Fraction(number, 7)}
        if number > 1:
            trial.config["path"] = Path("x")
        codec.dump(trial)
    assert len(read) == 2
