"""The one boundary that every call from Ray into this package passes.

Ray calls us in callback hooks, in methods that we override for a run, in functions that we wrap
when the package is imported, and in the threads and finalizers that these start. Each such *entry*
is registered in :data:`ENTRIES` with a name and a policy: what happens if our code raises an
exception that it should not raise.

- :attr:`Policy.CALL_RAY`: the boundary calls Ray's own function, as if this package were not
  there. If our code has called it already, that result is returned; it is not called twice.
- :attr:`Policy.KEEP`: the boundary returns None; the files and results published last stay.
- :attr:`Policy.TAKE_OUT`: the boundary removes what this package has installed in the run, and the
  run continues with Ray alone. It then calls Ray's own function, if there is one. If the removal
  fails because the store cannot be read, everything stays installed, and nothing else is done.

The user gets one warning for each entry and run; further occurrences are not logged.

The boundary passes on every exception that Ray would raise without this package, and those of a
user's signal handlers. Our code calls Ray's function through :class:`RaysOwn`, which records the
exceptions that it raises. Such an exception counts as ours only if one of our own objects raised
it, for example a lazy trial that Ray was reading.
"""

from __future__ import annotations

import enum
import functools
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from ray_tune_memguard.notices import Notices, logger

Value = TypeVar("Value")
Function: TypeAlias = Callable[..., Any]

_PACKAGE = "ray_tune_memguard"


class Policy(enum.Enum):
    """What happens when our code raises."""

    CALL_RAY = "Ray's own code runs instead"
    KEEP = "the files and results published last stay as they are"
    TAKE_OUT = "the run continues with Ray alone"


class RaysOwn:
    """Ray's own function, while one call of our stand-in for it lasts."""

    __slots__ = ("_function", "raised", "result", "returned")

    def __init__(self, function: Function) -> None:
        self._function = function
        #: Exceptions that Ray or a user's code has raised.
        self.raised: list[Exception] = []
        #: Whether Ray's own function has returned, and what.
        self.returned = False
        self.result: Any = None

    def __call__(self, *args: object, **kwargs: object) -> Any:
        self.result = self.call(self._function, *args, **kwargs)
        self.returned = True
        return self.result

    def call(self, function: Callable[..., Value], *args: object, **kwargs: object) -> Value:
        """Call a function of Ray's or of the user's, and record the exception that it raises."""
        try:
            return function(*args, **kwargs)
        except Exception as error:
            self.raised.append(error)
            raise

    def is_source_of(self, error: Exception) -> bool:
        """Whether Ray would have raised the exception without us."""
        return any(error is one for one in self.raised) and not _is_raised_by_us(error)


class Entry:
    """One place at which Ray calls us.

    Attributes:
        name: the name in messages, and the key in :data:`ENTRIES`.
        policy: what happens when ``ours`` raises.
        ours: our function. Its first argument is a :class:`RaysOwn` if it stands in for a function
            of Ray's. A test may replace it.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        ours: Function,
        take_out: Callable[[Any, Exception], None] | None = None,
    ) -> None:
        self.name = name
        self.policy = policy
        self.ours = ours
        self._take_out = take_out

    def in_place_of(self, original: Function) -> Function:
        """A function that can stand in for ``original``, a function or method of Ray's."""

        @functools.wraps(original)
        def stand_in(*args: object, **kwargs: object) -> object:
            rays = RaysOwn(original)
            try:
                return self.ours(rays, *args, **kwargs)
            except Exception as error:
                if rays.is_source_of(error) or _is_of_signal(error):
                    raise
                failed = error
            self.report(failed)
            if self.policy is Policy.KEEP:
                return None
            if self.policy is Policy.TAKE_OUT:
                # What is in place has spilled trials that Ray's own function would leave out.
                if not self._leave(args[0], failed):
                    return None
            elif rays.returned:
                return rays.result
            return original(*args, **kwargs)

        return stand_in

    def on_its_own(self) -> Function:
        """``ours`` as a function for threads, finalizers and hooks. It raises nothing of ours."""

        @functools.wraps(self.ours)
        def safe(*args: object, **kwargs: object) -> object:
            try:
                return self.ours(*args, **kwargs)
            except Exception as error:
                raise_if_of_signal(error)
                self.handle(error, *args[:1])
            return None

        return safe

    def handle(self, error: Exception, owner: object = None) -> None:
        """What follows when ``ours`` has raised, in a call that stands in for no function of Ray's.

        Args:
            error: what it raised.
            owner: the first argument of the call.
        """
        if self._take_out is None:
            self.report(error)
        else:
            self._leave(owner, error)

    def report(self, error: Exception) -> None:
        """Warn the user, once a run."""
        _notices.warn(
            self.name,
            f"{self.name} raised an unexpected error ({error!r}); {self.policy.value}. Further "
            "occurrences are not logged.",
        )
        logger.debug("%s", self.name, exc_info=error)

    def _leave(self, owner: object, error: Exception) -> bool:
        """Whether what is in place for the run is taken out now."""
        if self._take_out is not None:
            try:
                self._take_out(owner, error)
            except Exception as another:
                # What is in place stays: it holds all trials, and is still whole on disk.
                logger.debug("%s cannot be removed from the run", self.name, exc_info=another)
                return False
        return True


#: All entries, by name.
ENTRIES: dict[str, Entry] = {}
_notices = Notices()


def entry(
    name: str, policy: Policy, take_out: Callable[[Any, Exception], None] | None = None
) -> Callable[[Function], Entry]:
    """Register the decorated function as what Ray calls there.

    Args:
        name: of the entry; unique.
        policy: what happens when it raises.
        take_out: for :attr:`Policy.TAKE_OUT`; takes the first argument of the call, and the error.
    """

    def register(ours: Function) -> Entry:
        return ENTRIES.setdefault(name, Entry(name, policy, ours, take_out))

    return register


def begin_run() -> None:
    """Begin a new run, in which each warning may be logged once more."""
    global _notices, _handlers_at_begin
    _notices = Notices()
    _handlers_at_begin = _codes_of_handlers()


def raise_if_of_signal(error: Exception) -> None:
    """Raise an exception again that a user's signal handler has raised while our code ran.

    Wherever it happens to strike, it is meant for the whole program: ``signal.alarm`` with a
    handler that raises TimeoutError limits the time of a sweep.
    """
    if _is_of_signal(error):
        raise error


#: A handler may take itself away before it raises.
_handlers_at_begin: set[object] = set()


def _codes_of_handlers() -> set[object]:
    """The code of all signal handlers in Python, whatever kind of callable they are."""
    codes = set()
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        while isinstance(handler, functools.partial):
            handler = handler.func
        if callable(handler) and not hasattr(handler, "__code__"):
            handler = getattr(handler, "__func__", None) or type(handler).__call__
        codes.add(getattr(handler, "__code__", None))
    return codes - {None}


def _is_of_signal(error: Exception) -> bool:
    codes = _codes_of_handlers() | _handlers_at_begin
    at: TracebackType | None = error.__traceback__ if codes else None
    while at is not None:
        if at.tb_frame.f_code in codes:
            return True
        at = at.tb_next
    return False


def _is_raised_by_us(error: Exception) -> bool:
    """Whether the innermost code that is not Python's own belongs to this package."""
    owners: list[str] = []
    at: TracebackType | None = error.__traceback__
    while at is not None:
        module = str(at.tb_frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in sys.stdlib_module_names:
            owners.append(module)
        at = at.tb_next
    return bool(owners) and f"{owners[-1]}.".startswith(f"{_PACKAGE}.") and (owners[-1] != __name__)
