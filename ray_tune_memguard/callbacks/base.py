"""The base class of this package's callbacks: they pickle, and no error of theirs ends a run."""

from __future__ import annotations

import copyreg
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from ray.tune import Callback

from ray_tune_memguard.adapter import boundary
from ray_tune_memguard.adapter.boundary import Policy
from ray_tune_memguard.adapter.handle import RunHandle
from ray_tune_memguard.notices import Notices, logger, show_lines

Hook = TypeVar("Hook", bound=Callable[..., Any])

# A pickled callback (Ray's tuner.pkl holds them) must open where this package is not installed, and
# then do nothing. So the pickle contains this text, not the name of a function of this package.
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
    """A Tune callback whose pickle contains its options, and not the state of a run.

    Subclasses keep their options in ``self.options`` (picklable, by argument name) and create the
    state of a run in :meth:`begin`.
    """

    options: dict[str, object]
    #: The part of this callback that spills trials; a resumed run reads its options.
    prunes: Any = None

    def setup(  # type: ignore[override]
        self, **info: object
    ) -> None:
        """Begin a run and discard the state of an earlier one. Ray calls this."""
        _SETUP(self)

    def begin_run(self, run: RunHandle) -> None:
        """Begin the run of this handle."""
        before = set(self.__dict__)
        self.run = run
        self.notices = Notices()
        self.active = True
        self.begin_safely()
        self._of_the_run = getattr(self, "_of_the_run", set()) | (set(self.__dict__) - before)

    def begin(self) -> None:
        """Create the state of a run. An error here disables the callback."""

    def claim(self, job: str) -> bool:
        """Claim a job of the run. If another callback has it, this one is disabled and says so."""
        if self.run.claim(job, self):
            return True
        self.active = False
        self.notices.remark(
            "second",
            f"Another {type(self).__name__} is already active; this instance is disabled.",
        )
        return False

    def begin_safely(self) -> None:
        _BEGIN(self)

    def disable(self, error: Exception) -> None:
        """Do nothing more in this run, and warn the user once."""
        self.active = False
        notices = getattr(self, "notices", None) or Notices()
        notices.warn(
            "disabled",
            f"{type(self).__name__} is disabled for the rest of this run, which continues without "
            f"it, because of an unexpected error: {error!r}",
        )
        logger.debug("%s is disabled", type(self).__name__, exc_info=error)

    def __getstate__(self) -> dict[str, object]:
        left_out = {
            "run",
            "notices",
            "active",
            "_state",
            "_of_the_run",
            *getattr(self, "_of_the_run", ()),
        }
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __reduce__(self) -> tuple[object, ...]:
        if not type(self).__module__.startswith("ray_tune_memguard."):
            # A user's subclass has arguments and state of its own, and pickles as classes do.
            return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]
        name = f"{type(self).__module__}:{type(self).__qualname__}"
        return _Reopened(), (name, self.options)


class _Reopened:
    """Pickles as the function that recreates a callback, or a plain one without this package."""

    def __call__(self, name: str, options: dict[str, object]) -> object:
        return reopen(name, options)

    def __reduce__(self) -> tuple[object, ...]:
        return eval, (_OPEN,)


def reopen(name: str, options: dict[str, object]) -> object:
    """Recreate a pickled callback.

    An option that is not valid here (a directory of another machine, an argument of another
    version) must not prevent a restore, so it falls back to its default.

    Args:
        name: ``module:Class`` of the callback.
        options: its options by argument name.
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
            reason = str(error) if option in known else "this version does not have this option"
            logger.warning("%s falls back to its default for %s: %s", class_name, option, reason)
    return callback_class(**kept)


def _disable(callback: GuardCallback, error: Exception) -> None:
    callback.disable(error)


@boundary.entry("GuardCallback.setup", Policy.TAKE_OUT, _disable)
def _setup(callback: GuardCallback) -> None:
    show_lines()
    boundary.begin_run()
    callback.begin_run(RunHandle.of_caller())


@boundary.entry("GuardCallback.begin", Policy.TAKE_OUT, _disable)
def _begin(callback: GuardCallback) -> None:
    callback.begin()


_SETUP, _BEGIN = _setup.on_its_own(), _begin.on_its_own()


def guarded(hook: Hook) -> Hook:
    """Make a hook do nothing once its callback is disabled, and disable it on any error."""
    entry = boundary.entry(hook.__qualname__, Policy.TAKE_OUT, _disable)(hook)

    @functools.wraps(hook)
    def if_active(self: GuardCallback, *args: object, **kwargs: object) -> None:
        # Ray calls setup first; code that calls hooks itself may not.
        if getattr(self, "active", False):
            try:
                entry.ours(self, *args, **kwargs)
            except Exception as error:
                boundary.raise_if_of_signal(error)
                entry.handle(error, self)

    return if_active  # type: ignore[return-value]
