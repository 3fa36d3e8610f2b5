"""Names the objects in a Tune driver that can retain memory, so that they can be measured.

A *retention site* is an attribute of one of a run's parts (the controller, its actor manager,
scheduler, searcher, reporter, each callback), an attribute of such a part's class if the class is
the user's, or a global of a module. An object that several sites share counts for the first of them
in the order of :func:`retention_sites_of`: the controller's trials, then Ray's parts, then the
user's.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import types
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import ProgressReporter
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import SearchAlgorithm, Searcher

from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.system import classes
from ray_tune_memguard.system.library_files import is_of_library

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

TRIALS = "TuneController._trials"
THREADS = "threading._active"
#: Globals of libraries that are known to grow with trials or results.
_KNOWN_GLOBALS = (("ray.util.debug", "_logged"), ("tensorboardX.writer", "atexit"))
#: Depth of nested parts: a limiter around a searcher in a generator, say.
_MAX_DEPTH = 4
_CONTAINERS = frozenset(map(id, (dict, list, set, deque)))
#: A part with more attributes is one site: some code makes an attribute for each trial.
_MAX_ATTRIBUTES = 128
#: Modules of callbacks that measure, and are not measured: their memory is bounded.
_MEASURING = (
    "ray_tune_memguard.callbacks.object_growth_tracker",
    "ray_tune_memguard.testing.meter",
)
#: Globals of libraries are compared from this number of entries on.
_MIN_ENTRIES = 32
#: The number of growing globals that are measured.
_MAX_DISCOVERED = 32
# By identity, because a metaclass may define equality.
_SCALARS = frozenset(map(id, (int, float, complex, bool, str, bytes, type(None))))


@dataclass(frozen=True)
class RetentionSite:
    """A named object whose deep size is measured."""

    name: str
    value: object
    #: ``searcher``, ``scheduler``, ``callback``, ``controller``, ``reporter`` or ``module``.
    role: str
    #: The owner of the code that has it: ``user``, ``ray``, or ``library``.
    owner: str
    #: Whether its size varies although it does not grow.
    is_noisy: bool = False


@dataclass(frozen=True)
class _Part:
    name: str
    value: object
    role: str


def trial_identity(found: object) -> int | None:
    """A number that identifies a trial, without activating a ghost; None for other objects."""
    if not classes.has_base(type(found), Trial):
        return None
    try:
        return hash(object.__getattribute__(found, "trial_id"))
    except AttributeError:
        return None


def trials_in_memory(controller: TuneController) -> list[object]:
    """The trials of the controller's list that are in memory."""
    trials = controller._trials
    return trials.resident() if isinstance(trials, SpilledTrials) else list(trials)


def barriers_of(controller: TuneController) -> set[int]:
    """Identities of objects that are sites of their own, or that count for no site."""
    found = {id(part.value) for part in _parts(controller)}
    # The syncer is MemGuard's own: it has the paths of trials until they are uploaded.
    syncer = getattr(controller._checkpoint_manager._storage, "syncer", None)
    if type(syncer).__module__.startswith("ray_tune_memguard."):
        found.add(id(syncer))
    if isinstance(controller._trials, SpilledTrials):
        # It has an item for each trial that something else refers to.
        found.add(id(controller._trials.cache.live))
    return found


def retention_sites_of(
    controller: TuneController, discovered: Iterable[tuple[str, str]]
) -> Iterator[RetentionSite]:
    """All retention sites of a run, in the order in which shared objects are counted.

    Args:
        controller: the run's controller.
        discovered: module and name of each global that :class:`GrowingGlobals` has found.
    """
    parts = _parts(controller)
    barriers = {id(part.value) for part in parts}
    # After a spill it consists of the trials that wait for the next one, and of active ghosts.
    is_spilled = isinstance(controller._trials, SpilledTrials)
    yield RetentionSite(TRIALS, controller._trials, "controller", "ray", is_noisy=is_spilled)
    users: dict[int, tuple[type, _Part]] = {}
    # Ray's own first.
    for part in sorted(parts, key=lambda part: _is_users(type(part.value))):
        if any(classes.module(base) in _MEASURING for base in classes.mro(type(part.value))):
            continue
        attributes = list(classes.attributes(part.value).items())
        owner = _owner(type(part.value))
        if len(attributes) > _MAX_ATTRIBUTES and part.value is not controller:
            yield RetentionSite(
                f"{part.name}.__dict__", classes.attributes(part.value), part.role, owner
            )
            attributes = []
        for name, value in attributes:
            full = f"{part.name}.{name}"
            if full != TRIALS and id(type(value)) not in _SCALARS and id(value) not in barriers:
                yield RetentionSite(full, value, part.role, owner)
        for base in classes.mro(type(part.value)):
            if _is_users(base):
                users.setdefault(id(base), (base, part))
    modules = {"__main__", *_users_modules()}
    for base, part in users.values():
        modules.add(classes.module(base))
        for name, value in _globals(classes.namespace(base)):
            full = f"{classes.name(base)}.{name} (class)"
            yield RetentionSite(full, value, part.role, "user")
    for module in sorted(modules):
        for name, value in _globals(_namespace(module)):
            yield RetentionSite(f"{module}.{name}", value, "module", "user")
        for cls in _classes_of(module):
            if id(cls) not in users:
                for name, value in _globals(classes.namespace(cls)):
                    yield RetentionSite(
                        f"{module}.{classes.name(cls)}.{name}", value, "module", "user"
                    )
    for module, name in (*_KNOWN_GLOBALS, *discovered):
        if module not in modules and name in (namespace := _namespace(module)):
            yield RetentionSite(f"{module}.{name}", namespace[name], "module", "library")
    threads = threading._active  # type: ignore[attr-defined]
    # Its size includes their stacks.
    yield RetentionSite(THREADS, threads, "module", "library", is_noisy=True)


class GrowingGlobals:
    """Finds global containers, in any module, that grow as trials finish."""

    def __init__(self) -> None:
        # By the hash of module and name: thousands of names would take much memory.
        self._lengths: dict[int, int] = {}
        self._trials = 0
        self.found: list[tuple[str, str]] = []

    def compare(self, trials: int) -> None:
        """Compare with the last call: a global grows if it gained one item per 20 trials."""
        enough = max(1, (trials - self._trials) // 20)
        lengths: dict[int, int] = {}
        for module in list(sys.modules):
            for name, value in list(_namespace(module).items()):
                if type(name) is not str:
                    continue
                if id(type(value)) in _CONTAINERS and len(value) >= _MIN_ENTRIES:
                    key = hash((module, name))
                    lengths[key] = len(value)
                    grown = len(value) - self._lengths.get(key, len(value))
                    if grown >= enough and (module, name) not in self.found:
                        self.found.append((module, name))
        del self.found[_MAX_DISCOVERED:]
        self._lengths, self._trials = lengths, trials


def _parts(controller: TuneController) -> list[_Part]:
    found: dict[int, _Part] = {}
    names: Counter[str] = Counter()

    def add(value: object, role: str, depth: int = 0) -> None:
        if id(value) in found or depth > _MAX_DEPTH:
            return
        name = _class_name(value)
        names[name] += 1
        if names[name] > 1:
            name = f"{name}#{names[name]}"
        found[id(value)] = _Part(name, value, role)
        for inner in list(classes.attributes(value).values()):
            if inner_role := _role(inner):
                add(inner, inner_role, depth + 1)

    add(controller, "controller", _MAX_DEPTH)
    add(controller._actor_manager, "controller", _MAX_DEPTH)
    add(controller._scheduler_alg, "scheduler")
    add(controller._search_alg, "searcher")
    for callback in controller._callbacks._callbacks:
        add(callback, "callback")
    add(controller._callbacks, "controller", _MAX_DEPTH)
    return list(found.values())


_ROLES: tuple[tuple[type, str], ...] = (
    (TrialScheduler, "scheduler"),
    (Searcher, "searcher"),
    (SearchAlgorithm, "searcher"),
    (ProgressReporter, "reporter"),
    (Callback, "callback"),
)


def _role(value: object) -> str | None:
    return next((role for base, role in _ROLES if classes.has_base(type(value), base)), None)


def _class_name(value: object) -> str:
    """The name of the object's class, without the subclass that MemGuard may have assigned."""
    own = (base for base in classes.mro(type(value)) if not _is_ours(base))
    return classes.name(next(own))


def _is_ours(cls: type) -> bool:
    return classes.module(cls).startswith("ray_tune_memguard.adapter")


def _globals(namespace: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """The names in a module or class whose values can keep objects alive, not only code."""
    for name, value in list(namespace.items()):
        kind = type(value)
        if kind is staticmethod or kind is classmethod:
            value = value.__func__
            kind = type(value)
        if type(name) is not str or name.startswith("__") or id(kind) in _SCALARS:
            continue
        if kind is types.FunctionType:
            if value.__closure__ or any(map(_has_container, classes.held_by_function(value))):
                yield name, value
        elif kind is _CACHED or not (classes.has_base(kind, *_CODE) or _is_descriptor(value)):
            yield name, value


def _has_container(held: Mapping[str, object] | Iterable[object]) -> bool:
    """Whether there is a container in the defaults or attributes of a function."""
    inside: Iterable[object] = list(held.values()) if type(held) is dict else held
    return any(id(type(inner)) in _CONTAINERS for inner in inside)


def _classes_of(module: str) -> list[type]:
    """The classes that a module defines."""
    values = list(_namespace(module).values())
    found = (value for value in values if classes.has_base(type(value), type))
    return [cls for cls in found if classes.module(cls) == module]


def _is_descriptor(value: object) -> bool:
    return any("__get__" in classes.namespace(base) for base in classes.mro(type(value)))


_CODE = (type, types.ModuleType, types.BuiltinFunctionType, logging.Logger)
_CACHED = functools._lru_cache_wrapper


def _namespace(module: str) -> dict[str, Any]:
    found = sys.modules.get(module)
    return vars(found) if type(found) is types.ModuleType else {}


#: Whether a module is a user's, by its name.
_users: dict[str, bool] = {}


def _is_users(cls: type) -> bool:
    return is_users_module(classes.module(cls))


def _owner(cls: type) -> str:
    if _is_users(cls):
        return "user"
    return "ray" if classes.module(cls).partition(".")[0] == "ray" else "library"


def is_users_module(name: str) -> bool:
    """Whether the module of this name is neither Ray's nor a library's."""
    if name.partition(".")[0] in ("ray", "ray_tune_memguard", "builtins"):
        return False
    if name == "__main__":
        return True
    known = _users.get(name)
    if known is None:
        # A module of another type may run code when an attribute is read.
        file = _namespace(name).get("__file__")
        known = type(file) is str and not is_of_library(file)
        if name in sys.modules:
            _users[name] = known
    return known


def _users_modules() -> list[str]:
    return [name for name in list(sys.modules) if is_users_module(name)]
