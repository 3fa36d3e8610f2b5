"""Telling a restored searcher of trials that finished after its state was saved.

Ray saves a searcher's state with each experiment checkpoint. After a kill it is behind: it waits
for trials that are finished, and would suggest others, which it has suggested before, once more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, SearchGenerator
from ray.tune.utils import flatten_dict, unflattened_lookup

from ray_tune_memguard.adapter.restore.optuna_study import PersistentStudy
from ray_tune_memguard.adapter.restore.plan import UnsnapshottedTrial
from ray_tune_memguard.notices import logger


def catch_up(
    controller: TuneController, late: Sequence[UnsnapshottedTrial], creation_count: int
) -> None:
    """Bring the controller's searcher to where it was when the last of these trials finished.

    Trials that it made in the meantime and that did not finish are made again.
    ``creation_count``: how many trials the run had made when the searcher's state was saved.
    """
    search = controller._search_alg
    recorded: set[str] = set()
    if late and isinstance(search, SearchGenerator):
        _try_to(_find_recorded, search, late, recorded)
    for trial in late:
        if trial.creation_index is None and not trial.is_told and trial.trial_id not in recorded:
            _try_to(_complete, search, trial)
    unknown = {trial.creation_index: trial for trial in late if trial.creation_index is not None}
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
        # Of a searcher that we do not know: the trials come in the same order, with other ids.
        for creation_index in range(creation_count, max(unknown) + 1):
            made = search.next_trial()
            if made is None:
                break
            if creation_index in unknown:
                _try_to(_complete, search, unknown[creation_index], made.trial_id)
            else:
                controller.add_trial(made)


def _find_recorded(
    search: SearchGenerator, late: Sequence[UnsnapshottedTrial], recorded: set[str]
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
    for trial in late:
        if study.accounts_for(trial.trial_id, trial.parameters()):
            recorded.add(trial.trial_id)
            for limiter in limiters:
                limiter.live_trials.discard(trial.trial_id)


def _make_variants_again(
    controller: TuneController,
    search: BasicVariantGenerator,
    awaited: dict[str, UnsnapshottedTrial],
) -> None:
    """Let it make trials, whose ids are those of then, up to the last one that has finished."""
    runs = {_run_of(trial_id) for trial_id in awaited}
    # Trials that are to run again all count as running, also those that had ended one after the
    # other but were not written down; the limit must not keep it from what has finished.
    limit, search.max_concurrent = search.max_concurrent, 0
    try:
        while awaited and (made := search.next_trial()) is not None:
            finished = awaited.pop(made.trial_id, None)
            if finished is not None:
                _try_to(_complete, search, finished)
                continue
            controller.add_trial(made)
            if _run_of(made.trial_id) not in runs:
                break  # It could not be restored and begins anew; nobody awaits its trials.
    finally:
        search.max_concurrent = limit


def _run_of(trial_id: str) -> str:
    return trial_id.rpartition("_")[0]


def _try_to(act: Any, *arguments: Any) -> None:
    """A searcher that cannot be told must not keep the sweep from going on."""
    try:
        act(*arguments)
    except Exception as error:
        logger.debug("The searcher was not told of a finished trial: %r", error)


def _complete(search: Any, trial: UnsnapshottedTrial, trial_id: str | None = None) -> None:
    """``trial_id``: under which the searcher knows the trial, if not by its own."""
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
    """Let the searcher suggest for the trial again; if it suggests something else, tell it so."""
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


def _same(suggested: dict[str, Any], then: dict[str, Any]) -> bool:
    # What was read from JSON has lists where there were tuples.
    one, other = (json.dumps(side, sort_keys=True, default=repr) for side in (suggested, then))
    return one == other
