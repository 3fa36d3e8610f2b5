"""What all callbacks of this package have in common: they pickle, and they never end a sweep."""

from __future__ import annotations

import copyreg
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from ray.tune import Callback

from ray_tune_memguard.adapter.handle import RunHandle
from ray_tune_memguard.notices import Notices, logger, show_lines

Hook = TypeVar("Hook", bound=Callable[..., Any])

# A pickled callback (Ray's tuner.pkl holds them) must open where this package is missing, and then
# do nothing. So the pickle carries this text, not the name of a function of this package.
_OPEN_SOURCE = """
try:
    from ray_tune_memguard.callbacks.base import reopen
except ImportError:
    def reopen(name, options):
        from ray.tune import Callback
        return Callback()
"""
_OPEN = f"(lambda scope: exec({_OPEN_SOURCE!r}, scope) or scope['reopen'])({{}})"


class GuardCallback(Callback):
    """A Tune callback whose options survive pickling and whose state of a run does not.

    Subclasses keep their options in ``self.options`` (picklable, by argument name) and make the
    rest anew in :meth:`begin`.
    """

    options: dict[str, Any]
    #: The part of this callback that spills trials: what a resumed sweep looks for.
    prunes: Any = None

    def setup(  # type: ignore[override]
        self, **info: Any
    ) -> None:
        """Begin a run. Called by Ray; the state of an earlier run is forgotten."""
        self.begin_run(RunHandle.of_caller())

    def begin_run(self, run: RunHandle) -> None:
        """Begin this run."""
        show_lines()
        before = set(self.__dict__)
        self.run = run
        self.notices = Notices()
        self.active = True
        self.begin_safely()
        self._of_the_run = getattr(self, "_of_the_run", set()) | (set(self.__dict__) - before)

    def begin(self) -> None:
        """Make the state of a run. An error here steps back, as in any hook."""

    def begin_safely(self) -> None:
        _guarded(type(self).begin)(self)

    def step_back(self, error: Exception) -> None:
        """Do nothing more in this sweep, and say so once."""
        self.active = False
        self.notices.warn(
            "step back",
            f"{type(self).__name__} met an error of its own and does nothing more in this sweep; "
            f"the sweep itself goes on: {error!r}",
        )

    def __getstate__(self) -> dict[str, Any]:
        left_out = {"_of_the_run", *getattr(self, "_of_the_run", ())}
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __reduce__(self) -> tuple[Any, ...]:
        if not type(self).__module__.startswith("ray_tune_memguard."):
            # A user's subclass has arguments and state of its own, and pickles as classes do.
            return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]
        name = f"{type(self).__module__}:{type(self).__qualname__}"
        return _Reopened(), (name, self.options)


class _Reopened:
    """Pickles as the function that makes a callback again, or a stand-in for it."""

    def __call__(self, name: str, options: dict[str, Any]) -> Any:
        return reopen(name, options)

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (_OPEN,)


def reopen(name: str, options: dict[str, Any]) -> Any:
    """Make the callback that was pickled: ``module:Class`` with its options.

    An option that cannot be kept here (a directory of another machine, an argument of another
    version) must not keep an experiment from being restored: it falls back to its default.
    """
    module, _, class_name = name.partition(":")
    # By its public name first: modules have moved since experiments were pickled.
    public = vars(importlib.import_module("ray_tune_memguard"))
    callback_class: Any = public.get(class_name) or getattr(
        importlib.import_module(module), class_name
    )
    known = inspect.signature(callback_class).parameters
    kept = {}
    for option, value in options.items():
        try:
            callback_class(**{option: value})
            kept[option] = value
        except (TypeError, ValueError) as error:
            reason = str(error) if option in known else "this version does not have it"
            logger.warning("%s falls back to its default for %s: %s", class_name, option, reason)
    return callback_class(**kept)


def _guarded(hook: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(hook)
    def safe_hook(self: GuardCallback, *args: Any, **kwargs: Any) -> None:
        # Ray calls setup first; somebody who drives hooks by hand may not.
        if getattr(self, "active", False):
            try:
                hook(self, *args, **kwargs)
            except Exception as error:
                self.step_back(error)

    return safe_hook


def guarded(hook: Hook) -> Hook:
    """Make a hook do nothing once its callback stepped aside, and step back on any error."""
    return _guarded(hook)  # type: ignore[return-value]
