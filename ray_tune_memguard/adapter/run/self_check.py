"""Compares the first checkpoint of a run with the checkpoint that Ray would have written.

The check runs once, before the first trial is released; from then on a restore depends on our
files.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ray_tune_memguard.adapter.serialization.json_text import decode

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.adapter.installation import Installation
    from ray_tune_memguard.adapter.seam import Controller

#: The number of trials whose records are compared.
MAX_COMPARED_TRIALS = 8
#: The experiment state file of a restored run may be larger; it is then not read.
MAX_READ_BYTES = 4 << 20
_PARTS = {"trial_data", "runner_data", "stats"}


def difference(controller: Controller, installation: Installation) -> str | None:
    """A difference from Ray's own checkpoint that a restore would notice; None if there is none."""
    return _of_file(controller, installation) or _of_trials(installation)


def _of_file(controller: Controller, installation: Installation) -> str | None:
    path = installation.state_file.path
    if path.stat().st_size > MAX_READ_BYTES:
        return None
    try:
        # Objects of the user's in it stay pickles: only texts and names are compared.
        state = json.loads(path.read_text())
    except ValueError as error:
        return f"the experiment state file {path} cannot be read ({error})"
    if not state.keys() >= _PARTS:
        return f"the experiment state file {path} has no {_PARTS - state.keys()}"
    found = {tuple(record) for record in state["trial_data"]}
    lost = [key for key, record in controller._trial_metadata.items() if tuple(record) not in found]
    if lost:
        return f"the experiment state file {path} has no record of trial {lost[0]}"
    attributes = controller.__getstate__().keys() - state["runner_data"].keys()
    if attributes:
        return f"the experiment state file {path} lacks the controller's {sorted(attributes)}"
    return None


def _of_trials(installation: Installation) -> str | None:
    for trial in installation.trials.resident()[:MAX_COMPARED_TRIALS]:
        with_rays = _rays_record(trial)
        if with_rays is None:
            continue
        ours = installation.codec.json_state(trial)
        for part, mine, rays in zip(("state", "metadata"), ours, with_rays, strict=True):
            try:
                where = _differs(decode(mine), decode(rays))
            except Exception:
                # The user's config or result holds an object that cannot be unpickled here, as
                # Ray's text of it cannot.
                continue
            if where is not None:
                return f"the {part} of trial {trial} is not written as Ray writes it ({where})"
    return None


def _rays_record(trial: Trial) -> tuple[str, str] | None:
    """The record that Ray writes of a trial; None if Ray cannot, and will report that itself.

    The caches of both texts are cleared before and afterwards.
    """
    metadata = trial.run_metadata
    trial._state_json = metadata.__dict__["_cached_json"] = None
    try:
        return trial.get_json_state()
    except Exception:
        return None
    finally:
        trial._state_json = metadata.__dict__["_cached_json"] = None


def _differs(one: object, other: object, path: str = "") -> str | None:
    """The path at which two values certainly differ; None if they are equal or not comparable."""
    if type(one) is not type(other):
        return path or "type"
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return f"{path}: {sorted(map(str, one.keys() ^ other.keys()))}"
        pairs = [(f"{path}/{key}", value, other[key]) for key, value in one.items()]
    elif isinstance(one, (list, tuple, deque)) and isinstance(other, (list, tuple, deque)):
        if len(one) != len(other):
            return f"{path}: length"
        pairs = [(path, *pair) for pair in zip(one, other, strict=True)]
    elif isinstance(one, float) and isinstance(other, float):
        return None if one == other or (math.isnan(one) and math.isnan(other)) else path
    elif isinstance(one, (str, int, bytes, type(None))):
        return None if one == other else path
    else:  # A pickled object: the class is the same, but not every object is comparable.
        return None
    found = (_differs(mine, rays, where) for where, mine, rays in pairs)
    return next((where for where in found if where is not None), None)
