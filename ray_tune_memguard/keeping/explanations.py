"""What Ray's errors about lost objects mean, and what to do."""

from __future__ import annotations

from collections.abc import Iterator

#: By the name of the error, since not every Ray has all of them. The more special come first in an
#: error's classes.
_EXPLANATIONS = {
    "OwnerDiedError": (
        "The process that owned the object has ended: the one that called ray.put, or that "
        "submitted the task that returned it, such as a trial. Keep the value with keeper.keep() "
        "or keeper.run() of ray_tune_memguard.Keeper, or return it from a task that a process "
        "submits which lives longer."
    ),
    "ReferenceCountingAssertionError": (
        "A reference reached this process after the owner of the object had deleted it, because "
        "the process that passed it on ended, or was late to tell the owner. Hold a reference in a "
        "process that lives until the object has been read, or pass a Kept of "
        "ray_tune_memguard.Keeper instead of the reference."
    ),
    "ObjectFreedError": (
        "The object was freed by an explicit call while references to it existed. Free it after "
        "its last use, or delete the references instead."
    ),
    "ObjectFetchTimedOutError": (
        "No node said in time that it has the object, so its copies are gone or their node cannot "
        "be reached. Check that the nodes are alive and that their network and disks are not "
        "overloaded, and then compute the object again."
    ),
    "ObjectReconstructionFailedMaxAttemptsExceededError": (
        "The object was lost with its node, and Ray has run its task again as often as allowed. "
        "Find out why nodes or workers die, or raise max_retries of the task."
    ),
    "ObjectReconstructionFailedLineageEvictedError": (
        "The object was lost with its node, and Ray no longer remembers the task that made it. "
        "Start Ray with a larger RAY_max_lineage_bytes, or compute the object again."
    ),
    "ObjectReconstructionFailedError": (
        "The object was lost with its node, and Ray cannot run the task that made it again: it "
        "came from ray.put or from an actor, its retries are used up, or another process owns it. "
        "Make it in a task with max_retries above 0 that a long-lived process submits (for example "
        "with keeper.run() of ray_tune_memguard.Keeper), or store it as a file."
    ),
    "ObjectLostError": (
        "All copies of the object are gone, because the nodes that had them were lost or their "
        "raylets ended. Compute it again, or make it in a task with max_retries above 0, which Ray "
        "then runs again by itself."
    ),
}
#: After the message of a ``KeptLostError``, which is a sentence.
_KEPT = (
    "Compute it and keep it again: it lives until it is released, its keeper is closed, its node "
    "is lost, or the process that made the keeper ends."
)


def explain(error: BaseException) -> str:
    """Say in two sentences what an error about a lost object means, and what to do.

    Args:
        error: what ``ray.get`` or :meth:`Kept.get` raised, or ``Result.error`` of a trial.

    Returns:
        The sentences: for ``OwnerDiedError``, ``ReferenceCountingAssertionError``,
        ``ObjectLostError`` and its other subclasses, :class:`KeptLostError`, and errors that
        were caused by one of them; otherwise a sentence that it is none of these.

    Raises:
        TypeError: ``error`` is not an exception.

    Examples:
        >>> from ray.exceptions import OwnerDiedError
        >>> from ray_tune_memguard import explain
        >>> explain(OwnerDiedError("00ff", b"", "")).startswith("The process that owned the object")
        True
        >>> explain(KeyError("loss"))
        "KeyError is none of Ray's errors about lost objects."
    """
    if not isinstance(error, BaseException):
        raise TypeError(f"error must be an exception; got {error!r}")
    for one in _with_causes(error):
        for name in (kind.__name__ for kind in type(one).__mro__):
            if name == "KeptLostError":
                # In a task's error the text of the class that Ray makes is the whole traceback.
                return f"{getattr(one, 'cause', None) or one} {_KEPT}"
            if name in _EXPLANATIONS:
                return _EXPLANATIONS[name]
    return f"{type(error).__name__} is none of Ray's errors about lost objects."


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, and so on. Ray has its own attribute for causes."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            causes = (one.__cause__, getattr(one, "cause", None))
            waiting.extend(cause for cause in causes if isinstance(cause, BaseException))
