"""Gives a restored searcher the results of trials that finished after its state was saved.

Ray saves a searcher's state with each experiment checkpoint. After a crash this state is older than
the last trials: the searcher waits for trials that have finished, and would create some of the
finished trials a second time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ray.tune.search import (
    BasicVariantGenerator,
    ConcurrencyLimiter,
    SearchAlgorithm,
    SearchGenerator,
)
from ray.tune.utils import flatten_dict, unflattened_lookup

from ray_tune_memguard.adapter import boundary
from ray_tune_memguard.adapter.restore.optuna_study import PersistentStudy
from ray_tune_memguard.adapter.restore.plan import UnsnapshottedTrial
from ray_tune_memguard.notices import logger

if TYPE_CHECKING:
    from ray_tune_memguard.adapter.seam import Controller


def catch_up(
    controller: Controller, unsnapshotted: Sequence[UnsnapshottedTrial], creation_count: int
) -> None:
    """Bring the searcher to the state that it had when the last of these trials finished.

    Trials that it created in the meantime and that did not finish are created again.

    Args:
        controller: the controller of the searcher; trials that are created again are added to it.
        unsnapshotted: trials that were spilled after the searcher's state was saved.
        creation_count: the number of trials that the run had created when the state was saved.
    """
    search = controller._search_alg
    recorded: set[str] = set()
    if unsnapshotted and isinstance(search, SearchGenerator):
        _try_to(_find_recorded, search, unsnapshotted, recorded)
    for trial in unsnapshotted:
        if (
            trial.creation_index is None
            and not trial.is_reported
            and trial.trial_id not in recorded
        ):
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
                _try_to(_create_again, controller, search)
            elif finished.trial_id in recorded:
                search._counter += 1
            else:
                _try_to(_suggest_again, search, finished)
    elif isinstance(search, BasicVariantGenerator):
        awaited = {trial.trial_id: trial for trial in unknown.values()}
        _try_to(_create_variants_again, controller, search, awaited)
    else:
        _try_to(_create_with_other_ids, controller, search, unknown, creation_count)


def _find_recorded(
    search: SearchGenerator, unsnapshotted: Sequence[UnsnapshottedTrial], recorded: set[str]
) -> None:
    """Add the ids of trials whose results the searcher's database already has to ``recorded``."""
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


def _create_variants_again(
    controller: Controller,
    search: BasicVariantGenerator,
    awaited: dict[str, UnsnapshottedTrial],
) -> None:
    """Create the trials, with the same ids as before, up to the last one that has finished."""
    runs = {_run_of(trial_id) for trial_id in awaited}
    # To the generator all trials that are created again are running, also those that had ended
    # without being spilled. Its limit would keep it from creating the ones that have finished.
    limit, search.max_concurrent = search.max_concurrent, 0
    try:
        while awaited and (created := search.next_trial()) is not None:
            finished = awaited.pop(created.trial_id, None)
            if finished is not None:
                _try_to(_complete, search, finished)
                continue
            controller.add_trial(created)
            if _run_of(created.trial_id) not in runs:
                break  # The generator's state could not be restored: its trials have new ids.
    finally:
        search.max_concurrent = limit


def _create_with_other_ids(
    controller: Controller,
    search: SearchAlgorithm,
    unknown: dict[int, UnsnapshottedTrial],
    creation_count: int,
) -> None:
    """A user's search algorithm creates the trials in the same order, with other ids."""
    for creation_index in range(creation_count, max(unknown) + 1):
        created = search.next_trial()
        if created is None:
            break
        if creation_index in unknown:
            _try_to(_complete, search, unknown[creation_index], created.trial_id)
        else:
            controller.add_trial(created)


def _run_of(trial_id: str) -> str:
    return trial_id.rpartition("_")[0]


def _try_to(act: Callable[..., object], *arguments: object) -> None:
    """Call a function. If the searcher raises, the restore continues."""
    try:
        act(*arguments)
    except Exception as error:
        boundary.raise_if_of_signal(error)
        logger.debug("The searcher did not accept the result of a finished trial: %r", error)


def _complete(
    search: SearchAlgorithm, trial: UnsnapshottedTrial, trial_id: str | None = None
) -> None:
    """Pass a trial's result, or its failure, to the searcher.

    Args:
        search: the searcher.
        trial: the trial.
        trial_id: the searcher's id of the trial, if it is not the trial's own.
    """
    known_as = trial_id or trial.trial_id
    if trial.failed():
        search.on_trial_complete(known_as, error=True)
    else:
        search.on_trial_complete(known_as, result=trial.result())


def _create_again(controller: Controller, search: SearchGenerator) -> None:
    created = search.next_trial()
    if created is not None:
        controller.add_trial(created)


def _suggest_again(search: SearchGenerator, trial: UnsnapshottedTrial) -> None:
    """Let the searcher suggest parameters for the trial again, and pass it the trial's result.

    If it suggests other parameters, those are reported as failed, and the trial's own parameters
    and result are added as an evaluated point.
    """
    search._counter += 1
    suggested = search.searcher.suggest(trial.trial_id)
    if not isinstance(suggested, dict):  # It wants to wait, or has finished.
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
    # Values read from JSON have lists in place of tuples.
    one, other = (json.dumps(side, sort_keys=True, default=repr) for side in (suggested, then))
    return one == other
