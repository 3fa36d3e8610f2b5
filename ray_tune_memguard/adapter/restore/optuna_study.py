"""Finds the results that a persistent Optuna study received after its searcher was saved.

``OptunaSearch(storage=…)`` keeps its study in a database. A crash sets the searcher back to its
last checkpoint, but not the database. A trial whose result the study has must not be suggested and
completed again, because the study would then hold it twice.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ray_tune_memguard.adapter import contract

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial
    from ray.tune.search.optuna import OptunaSearch

_MODULE = "ray.tune.search.optuna.optuna_search"


class PersistentStudy:
    """The study of a restored searcher, compared with the searcher's own state.

    Args:
        searcher: an ``OptunaSearch``.
    """

    def __init__(self, searcher: OptunaSearch) -> None:
        self._searcher = searcher
        study: Study | None = searcher._ot_study
        known: Sequence[FrozenTrial] = () if study is None else study.get_trials(deepcopy=False)
        finished = [trial for trial in known if trial.state.is_finished()]
        asked_for = {trial.number: trial_id for trial_id, trial in searcher._ot_trials.items()}
        #: Trials that the searcher knows and the study has results of.
        self._finished_ids = {asked_for[t.number] for t in finished if t.number in asked_for}
        # Trials that were suggested and ended after the searcher's state was saved.
        self._unknown = [trial for trial in finished if trial.number not in asked_for]

    @classmethod
    def of(cls, searcher: object) -> PersistentStudy | None:
        """The study of a searcher; None if it is not Optuna's, or this Ray lacks a name."""
        kind = getattr(sys.modules.get(_MODULE), "OptunaSearch", None)
        if kind is None or not isinstance(searcher, kind):
            return None
        return cls(searcher) if contract.OPTUNA_STUDY in contract.probe() else None

    def accounts_for(self, trial_id: str, parameters: Mapping[str, object]) -> bool:
        """Whether the study has the trial's result. If so, the searcher counts it as completed.

        Args:
            trial_id: the trial's id.
            parameters: the parameters that were suggested for it, as a flat dictionary.
        """
        if trial_id not in self._finished_ids:
            found = next((t for t in self._unknown if _is_part_of(t.params, parameters)), None)
            if found is None:
                return False
            # Two trials may have the same parameters, and each has its own result.
            self._unknown.remove(found)
        self._searcher._completed_trials.add(trial_id)
        return True


def _is_part_of(params: Mapping[str, object], parameters: Mapping[str, object]) -> bool:
    # Values read from JSON have lists in place of tuples.
    return all(
        name in parameters
        and json.dumps(value, default=repr) == json.dumps(parameters[name], default=repr)
        for name, value in params.items()
    )
