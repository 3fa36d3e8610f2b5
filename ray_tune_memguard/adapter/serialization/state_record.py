"""A trial's record in the experiment state file: two JSON texts, of its state and its metadata."""

from __future__ import annotations

import json
from typing import cast

import orjson

from ray_tune_memguard.adapter.serialization.json_text import PICKLED, decode
from ray_tune_memguard.store.trial_store import TrialRow

Result = dict[str, object]


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


def config_and_directory_in_record(record: bytes) -> tuple[Result, str | None]:
    """A trial's config, and the name of its directory if it has one."""
    text = orjson.loads(record)[0]
    try:
        state = orjson.loads(text)
    except orjson.JSONDecodeError:  # NaN and infinities, which are not JSON.
        state = json.loads(text)
    return _decoded(state, "config"), state.get("relative_logdir")


def last_result_in_record(metadata_json: str) -> Result:
    """The last result in a record."""
    return _decoded(json.loads(metadata_json), "last_result")


def reported_in_record(metadata_json: str) -> tuple[Result, dict[str, dict[str, float]]]:
    """The last result in a record, and each metric's summary."""
    metadata = json.loads(metadata_json)
    summaries = cast("dict[str, dict[str, float]]", _decoded(metadata, "metric_analysis"))
    return _decoded(metadata, "last_result"), summaries


def _decoded(metadata: dict[str, Result], part: str) -> Result:
    # The other parts of the metadata are not unpickled, which would take longer.
    text = json.dumps(metadata[part])
    return cast(Result, decode(text)) if PICKLED in text else metadata[part]
