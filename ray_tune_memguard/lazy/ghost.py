"""Turns a trial into a ghost and back, by replacing its class at run time.

Reason: schedulers and users' callbacks hold trials and use them as keys, so a spilled trial must
stay the same object. Ray reads its attributes directly, so only the object's class can notice
that its state is needed. Gain: a trial that other code holds takes 0.5 KB instead of 8 KB.
``tests/unit/test_ghost.py`` and ``test_lazy_states.py`` compare ghosts with plain trials.

A ghost's class is a subclass of the trial's class, created once for each class.
:mod:`ray_tune_memguard.lazy.cache` decides which trials are ghosts.
"""

from __future__ import annotations

from typing import Protocol, SupportsIndex, TypeVar, cast

from ray_tune_memguard.lazy.interfaces import TrialT

ObjectT = TypeVar("ObjectT", contravariant=True)

_ACTIVATOR = "_memguard_activator"
# The attributes that a ghost keeps; access to any other activates it.
_KEPT = frozenset({"trial_id", "status", "is_finished"})

_ghost_classes: dict[type, type] = {}
_plain_classes: dict[type, type] = {}


class Activator(Protocol[ObjectT]):
    """Loads the state of a ghost, by :func:`fill`."""

    def activate(self, trial: ObjectT, /) -> None: ...


def is_ghost(trial: object) -> bool:
    """Whether ``trial`` is a ghost, with its state on disk."""
    return type(trial) in _plain_classes


def new_ghost(
    plain: type[TrialT], trial_id: str, status: str, activator: Activator[TrialT]
) -> TrialT:
    """A ghost that was never a plain trial in this process."""
    ghost: object = object.__new__(_ghost_class(plain))
    inside = attributes(ghost)
    inside["trial_id"], inside["status"], inside[_ACTIVATOR] = trial_id, status, activator
    return cast(TrialT, ghost)


def empty(trial: TrialT, activator: Activator[TrialT]) -> None:
    """Turn a plain trial into a ghost."""
    state = attributes(trial)
    kept = {"trial_id": state["trial_id"], "status": state["status"], _ACTIVATOR: activator}
    # The activator, the class, then the state, each in one step: a thread that reads in between
    # finds the attributes, or waits for the activator's lock. The dictionary itself may be in use.
    object.__setattr__(trial, "__dict__", {**state, _ACTIVATOR: activator})
    object.__setattr__(trial, "__class__", _ghost_class(type(trial)))
    object.__setattr__(trial, "__dict__", kept)


def fill(trial: TrialT, state: dict[str, object]) -> None:
    """Turn a ghost into a plain trial with these attributes."""
    inside = attributes(trial)
    inside.update(state)
    # In this order: a thread that still sees the ghost's class finds whom to wait for.
    object.__setattr__(trial, "__class__", _plain_classes[type(trial)])
    inside.pop(_ACTIVATOR, None)


def attributes(trial: object) -> dict[str, object]:
    """The instance dictionary itself; asking for it does not activate a ghost."""
    inside: dict[str, object] = object.__getattribute__(trial, "__dict__")
    return inside


def _ghost_class(plain: type) -> type:
    """The class of ghosts of ``plain``: a subclass, so that ``isinstance`` holds."""
    if plain not in _ghost_classes:
        ghost = type(plain.__name__, (_GhostMixin, plain), {"__module__": plain.__module__})
        _ghost_classes[plain] = ghost
        _plain_classes[ghost] = plain
    return _ghost_classes[plain]


class _GhostMixin:
    """Activates the object on the first use of anything that it did not keep."""

    def __getattribute__(self, name: str) -> object:
        if name in _KEPT:
            return object.__getattribute__(self, name)
        if name == "__class__":
            return _plain_classes.get(type(self), type(self))
        _activate(self)
        return getattr(self, name)

    def __setattr__(self, name: str, value: object) -> None:
        _activate(self)
        setattr(self, name, value)

    def __delattr__(self, name: str) -> None:
        _activate(self)
        delattr(self, name)

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[object, ...]:
        # copy.copy reaches this through the type, so it must activate the object itself.
        _activate(self)
        return self.__reduce_ex__(protocol)


def _activate(ghost: object) -> None:
    activator = cast("Activator[object] | None", attributes(ghost).get(_ACTIVATOR))
    # None: another thread has activated it between the look-up of the class and this line.
    if activator is not None:
        activator.activate(ghost)
