"""The driver's side of a trial's profile. Nothing here waits for the trial's process."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from ray_tune_memguard.by_value import by_value
from ray_tune_memguard.cluster import profiled_process
from ray_tune_memguard.cluster.probe import NoAnswerError, NodeProbes
from ray_tune_memguard.cluster.profiled_process import (
    Settings,
    Started,
    Stopped,
    files_of,
    remove_files,
)

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem
    from ray.actor import ActorHandle

#: Larger profiles stay on their node.
MAX_COPIED = 64 * 2**20
#: A node may have to start its probe first.
MAX_WAIT_S = 60.0
Result = TypeVar("Result")
#: Names and sizes of a profile's files, and what is in them.
Files: TypeAlias = "tuple[dict[str, int], dict[str, bytes]]"


class RemoteProfile:
    """The profile of the trial that runs in an actor.

    The actor carries out one call after the other, so the profile begins before what Ray asks next,
    and ends after what it has asked before.

    Args:
        handle: the trial's actor.
        name: of the file.
        settings: how to profile.
    """

    def __init__(self, handle: ActorHandle[object], name: str, settings: Settings) -> None:
        self._handle: ActorHandle[object] | None = handle
        self._started: Future[Started] = _call(handle, profiled_process.start, name, settings)
        self._stopped: Future[Stopped] | None = None

    def begun(self) -> Started | None:
        """Where the profile has begun, or the problem; None while that is not known."""
        return _answer(self._started, lambda problem: {"problem": problem})

    def stop(self) -> None:
        """Ask the process to end the profile, once."""
        if self._handle is not None:
            self._stopped = _call(self._handle, profiled_process.stop)
            # A handle keeps the process alive.
            self._handle = None

    def ended(self) -> Stopped | None:
        """How the profile has ended, or the problem; None while that is not known."""
        return _answer(self._stopped, lambda problem: {"problem": problem})


@dataclass(frozen=True)
class Saved:
    """What has become of a profile's files.

    Attributes:
        size: of the file on its node, in bytes; 0 if it is not known.
        names: the files in the trial's directory, the profile first; none if it stays on its node.
        note: a sentence that says why it stays there; empty if it does not.
    """

    size: int = 0
    names: tuple[str, ...] = ()
    note: str = ""


def save_files(
    probes: NodeProbes, node: str, path: str, filesystem: FileSystem, directory: str
) -> Saved:
    """Copy a profile from its node to the trial's directory. It waits for both.

    Args:
        probes: what asks the node.
        node: the id of the node.
        path: the file there.
        filesystem: of the trial's directory.
        directory: the trial's directory.
    """
    answer = probes.ask(node, read_files, path, MAX_COPIED)
    answer.is_ready(MAX_WAIT_S)
    try:
        sizes, contents = answer.get()
    except NoAnswerError as error:
        return Saved(note=f"It could not be read on its node ({error}).")
    name = os.path.basename(path)
    size = sizes.get(name, 0)
    if not size:
        return Saved(note="It is empty, because its process was killed; see survive_kill.")
    if not contents:
        return Saved(
            size, note=f"Its files have more than {MAX_COPIED // 2**20} MiB and stay on its node."
        )
    begun: list[str] = []
    try:
        filesystem.create_dir(directory, recursive=True)
        for each, content in contents.items():
            begun.append(f"{directory}/{each}")
            with filesystem.open_output_stream(begun[-1], compression=None) as file:
                file.write(content)
    except OSError as error:
        for half in begun:
            with suppress(OSError):
                filesystem.delete_file(half)
        return Saved(size, note=f"It could not be copied to {directory} ({error}).")
    return Saved(size, tuple(contents))


def remove_saved(
    probes: NodeProbes, node: str, path: str, filesystem: FileSystem, files: tuple[str, ...]
) -> None:
    """Remove a profile from its node and from the trial's directory.

    Args:
        probes: what asks the node.
        node: the id of the node.
        path: the file there.
        filesystem: of the trial's directory.
        files: the files in the trial's directory, with their whole paths.
    """
    probes.ask(node, remove_files, path)
    for file in files:
        filesystem.delete_file(file)


def read_files(path: str, max_size: int) -> Files:
    """The files of a profile on this node.

    Args:
        path: the profile.
        max_size: if all of them have more bytes together, only their sizes are told.
    """
    files = files_of(path)
    sizes = {os.path.basename(file): os.path.getsize(file) for file in files}
    if sum(sizes.values()) > max_size:
        return sizes, {}
    contents = {}
    for file in files:
        with open(file, "rb") as source:
            contents[os.path.basename(file)] = source.read()
    return sizes, contents


def _answer(called: Future[Result] | None, with_problem: Callable[[str], Result]) -> Result | None:
    """What a call has returned, or the error's name as a problem; None while it has not."""
    if called is None or not called.done():
        return None
    error = called.exception()
    return called.result() if error is None else with_problem(type(error).__name__)


def _call(
    handle: ActorHandle[object], function: Callable[..., Result], *args: object
) -> Future[Result]:
    with by_value(profiled_process):
        called: Future[Result] = handle.__ray_call__.remote(function, *args).future()
    return called
