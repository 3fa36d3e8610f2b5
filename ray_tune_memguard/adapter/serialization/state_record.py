"""A trial's record in the experiment state file: two JSON texts, of its state and its metadata."""

from __future__ import annotations

import json
from typing import cast

import orjson

from ray_tune_memguard.adapter.serialization.json_text import PICKLED, decode, parse
from ray_tune_memguard.store.trial_store import TrialRow

Result = dict[str, object]

#: What Ray's reports read of a trial beside its config and its last result.
REPORTED = (
    "trial_id",
    "status",
    "trainable_name",
    "custom_trial_name",
    "experiment_tag",
    "_default_result_or_future",
)


def state_record(state_json: str, metadata_json: str) -> bytes:
    """Both texts as one element of the experiment state file."""
    if state_json.isascii() and metadata_json.isascii():
        return orjson.dumps((state_json, metadata_json))
    return json.dumps((state_json, metadata_json)).encode()


def row_of_record(state_json: str, metadata_json: str, record: str) -> TrialRow:
    """The store's row for a trial that is known only by its ``record``."""
    state, metadata = json.loads(state_json), json.loads(metadata_json)
    return TrialRow(
        state["trial_id"],
        state["status"],
        metadata["error_filename"] is not None,
        record.encode(),
        state.get("relative_logdir"),
        reported_at=metadata["last_result_time"],
    )


def reported_of_record(record: bytes) -> tuple[dict[str, object], Result]:
    """What a report on all trials reads: attributes of a trial, and its last result."""
    state_json, metadata_json = orjson.loads(record)
    state = parse(state_json)
    attributes = {name: state[name] for name in REPORTED}
    attributes["config"] = _decoded(state["config"])
    return attributes, _decoded(parse(metadata_json)["last_result"])


def config_of_record(record: bytes) -> Result:
    """A trial's config in its record."""
    return _decoded(parse(orjson.loads(record)[0])["config"])


def last_result_of_record(record: bytes) -> Result:
    """The last result in a record; empty if the trial reported nothing."""
    return _decoded(parse(orjson.loads(record)[1])["last_result"])


def last_result_in_record(metadata_json: str) -> Result:
    """The last result in the second text of a record."""
    return _decoded(json.loads(metadata_json)["last_result"])


def reported_in_record(metadata_json: str) -> tuple[Result, dict[str, dict[str, float]]]:
    """The last result in a record, and each metric's summary."""
    metadata = json.loads(metadata_json)
    summaries = cast("dict[str, dict[str, float]]", _decoded(metadata["metric_analysis"]))
    return _decoded(metadata["last_result"]), summaries


def _decoded(part: Result) -> Result:
    # The other parts of the record are not unpickled, which would take longer.
    return cast(Result, decode(json.dumps(part))) if _has_pickle(part) else part


def _has_pickle(value: object) -> bool:
    if isinstance(value, dict):
        return value.get("_type") == PICKLED or any(map(_has_pickle, value.values()))
    return isinstance(value, list) and any(map(_has_pickle, value))
