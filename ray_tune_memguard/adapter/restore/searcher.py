"""Telling a restored searcher of trials that finished after its state was saved.

Ray saves a searcher's state with each experiment checkpoint. After a crash the state is older than
the last trials: the searcher waits for trials that have finished, and would create others, which it
has created before, a second time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.search import (
    BasicVariantGenerator,
    ConcurrencyLimiter,
    SearchAlgorithm,
    SearchGenerator,
)
from ray.tune.utils import flatten_dict, unflattened_lookup

from ray_tune_memguard.adapter.restore.optuna_study import PersistentStudy
from ray_tune_memguard.adapter.restore.plan import UnsnapshottedTrial
from ray_tune_memguard.notices import logger


def catch_up(
    controller: TuneController, unsnapshotted: Sequence[UnsnapshottedTrial], creation_count: int
) -> None:
    """Bring the searcher to the state that it had when the last of these trials finished.

    Trials that it created in the meantime and that did not finish are created again.

    Args:
        controller: whose searcher it is. It gets the trials that are created again.
        unsnapshotted: trials that were spilled after the searcher's state was saved.
        creation_count: how many trials the run had created when the state was saved.
    """
    search = controller._search_alg
    recorded: set[str] = set()
    if unsnapshotted and isinstance(search, SearchGenerator):
        _try_to(_find_recorded, search, unsnapshotted, recorded)
    for trial in unsnapshotted:
        if trial.creation_index is None and not trial.is_told and trial.trial_id not in recorded:
            _try_to(_complete, search, trial)
    unknown = {
        trial.creation_index: trial for trial in unsnapshotted if trial.creation_index is not None
    }
    if not unknown:
        return
    if isinstance(search, SearchGenerator):
        for creation_index in range(creation_count, max(unknown) + 1):
            finished = unknown.get(creation_index)
            if finished is None:
                _try_to(_make_again, controller, search)
            elif finished.trial_id in recorded:
                search._counter += 1
            else:
                _try_to(_suggest_again, search, finished)
    elif isinstance(search, BasicVariantGenerator):
        _make_variants_again(
            controller, search, {trial.trial_id: trial for trial in unknown.values()}
        )
    else:
        # A search algorithm of the user's: the trials come in the same order, with other ids.
        for creation_index in range(creation_count, max(unknown) + 1):
            made = search.next_trial()
            if made is None:
                break
            if creation_index in unknown:
                _try_to(_complete, search, unknown[creation_index], made.trial_id)
            else:
                controller.add_trial(made)


def _find_recorded(
    search: SearchGenerator, unsnapshotted: Sequence[UnsnapshottedTrial], recorded: set[str]
) -> None:
    """Add the ids of trials whose results the searcher has in a database already."""
    searcher = search.searcher
    limiters = []
    while isinstance(searcher, ConcurrencyLimiter):
        limiters.append(searcher)
        searcher = searcher.searcher
    study = PersistentStudy.of(searcher)
    if study is None:
        return
    for trial in unsnapshotted:
        if study.accounts_for(trial.trial_id, trial.parameters()):
            recorded.add(trial.trial_id)
            for limiter in limiters:
                limiter.live_trials.discard(trial.trial_id)


def _make_variants_again(
    controller: TuneController,
    search: BasicVariantGenerator,
    awaited: dict[str, UnsnapshottedTrial],
) -> None:
    """Let it create trials, with the same ids as before, up to the last one that has finished."""
    runs = {_run_of(trial_id) for trial_id in awaited}
    # All trials that are created again count as running, also those that had ended one after the
    # other without being spilled. With the limit it would not create the ones that have finished.
    limit, search.max_concurrent = search.max_concurrent, 0
    try:
        while awaited and (made := search.next_trial()) is not None:
            finished = awaited.pop(made.trial_id, None)
            if finished is not None:
                _try_to(_complete, search, finished)
                continue
            controller.add_trial(made)
            if _run_of(made.trial_id) not in runs:
                break  # Its state could not be restored: its trials have new ids.
    finally:
        search.max_concurrent = limit


def _run_of(trial_id: str) -> str:
    return trial_id.rpartition("_")[0]


def _try_to(act: Callable[..., object], *arguments: object) -> None:
    """Call a function. If the searcher raises, the restore goes on without it."""
    try:
        act(*arguments)
    except Exception as error:
        logger.debug("The searcher was not told of a finished trial: %r", error)


def _complete(
    search: SearchAlgorithm, trial: UnsnapshottedTrial, trial_id: str | None = None
) -> None:
    """Tell the searcher that a trial has ended.

    Args:
        search: the searcher.
        trial: the trial.
        trial_id: by which the searcher knows the trial, if not by the trial's own.
    """
    known_as = trial_id or trial.trial_id
    if trial.failed():
        search.on_trial_complete(known_as, error=True)
    else:
        search.on_trial_complete(known_as, result=trial.result())


def _make_again(controller: TuneController, search: SearchGenerator) -> None:
    made = search.next_trial()
    if made is not None:
        controller.add_trial(made)


def _suggest_again(search: SearchGenerator, trial: UnsnapshottedTrial) -> None:
    """Let the searcher suggest for the trial again, and tell it how the trial ended.

    If it suggests other parameters, it is told that these failed, and gets the parameters and the
    result that there were.
    """
    search._counter += 1
    suggested = search.searcher.suggest(trial.trial_id)
    if not isinstance(suggested, dict):  # It wants to wait, or has had enough.
        return
    if _same(flatten_dict(suggested), trial.parameters()):
        _complete(search, trial)
        return
    search.on_trial_complete(trial.trial_id, error=True)
    searcher = search.searcher
    while hasattr(searcher, "searcher"):
        searcher = searcher.searcher
    if not trial.failed() and searcher.metric is not None:
        value: Any = unflattened_lookup(searcher.metric, trial.result())
        searcher.add_evaluated_point(trial.parameters(), value)


def _same(suggested: dict[str, object], then: dict[str, object]) -> bool:
    # What was read from JSON has lists where there were tuples.
    one, other = (json.dumps(side, sort_keys=True, default=repr) for side in (suggested, then))
    return one == other
