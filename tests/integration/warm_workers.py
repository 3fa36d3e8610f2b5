"""Ray's workers, forked from a process that has imported Ray: real ones, in a tenth of the time.

A worker's two seconds are nearly all imports, and each small sweep of a test starts workers of its
own. Here, Ray's command for a worker goes to a stand-in for Python, which has it carried out by a
nursery: a process that the first worker of a driver starts, and that ends with its raylet.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

_MOST_BYTES = 1 << 20
# A socket's address has 108 bytes.
_LONGEST_FOLDER = 90
_RAYLET = "RAY_RAYLET_PID"
# One nursery for each driver: Ray's C++ part reads a worker's environment while it is imported.
# Workers that Ray starts before it has a driver, and all its other commands, go to Python itself.
_STAND_IN = """#!{python} -IS
import json, os, socket, sys, time

def nursery():
    job = os.environ.get("RAY_JOB_ID")
    if not job or not sys.argv[1].endswith(("setup_worker.py", "default_worker.py")):
        return None
    address = {folder!r} + "/" + job
    if not os.path.exists(address):
        from subprocess import Popen
        Popen([{python!r}, {module!r}, address], start_new_session=True)
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for _ in range(400):
        try:
            line.connect(address)
            return line
        except OSError:
            time.sleep(0.05)
    return None

line = nursery()
if line is None:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
order = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()])
socket.send_fds(line, [order.encode()], [0, 1, 2])
line.recv(1)  # Until the worker ends.
"""


@contextmanager
def warm_workers(folder: Path) -> Iterator[None]:
    """A Ray that is started meanwhile forks its workers. ``folder``: an empty one, for as long."""
    if sys.platform != "linux" or len(str(folder)) > _LONGEST_FOLDER:
        yield  # There they start as Ray starts them.
        return
    stand_in = folder / "python"
    stand_in.write_text(
        _STAND_IN.format(python=sys.executable, folder=str(folder), module=__file__)
    )
    stand_in.chmod(0o700)
    python, sys.executable = sys.executable, str(stand_in)
    try:
        yield
    finally:
        sys.executable = python


def _serve(address: str) -> None:
    orders = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        orders.bind(address)
    except OSError:  # Two workers were the first, and the other's nursery was quicker.
        return
    orders.listen(64)
    orders.settimeout(1.0)

    _import_what_workers_need()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while os.path.exists(f"/proc/{os.environ[_RAYLET]}"):
        try:
            line, _ = orders.accept()
        except TimeoutError:
            continue
        line.settimeout(None)
        with line:
            order, files, _, _ = socket.recv_fds(line, _MOST_BYTES, 3)
            if os.fork() == 0:
                orders.close()
                _become_worker(*json.loads(order), files)
            for file in files:
                os.close(file)


def _import_what_workers_need() -> None:
    import ray._private.workers.default_worker
    import ray._private.workers.setup_worker
    import ray.actor

    # The first random id of Ray's own starts its generator, and all workers would have the same
    # ids. Actors that Ray defines while it is imported are given one.
    class Urandom:
        @staticmethod
        def from_random() -> Any:
            return kind(os.urandom(kind.size()))

    kind = ray.actor.ActorClassID
    with mock.patch.object(ray.actor, "ActorClassID", Urandom):
        import tests.integration.sweeps  # noqa: F401


def _become_worker(
    arguments: list[str], environment: dict[str, str], folder: str, files: list[int]
) -> None:
    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray._private.workers import setup_worker

    # Ray ends a worker's whole group with it.
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if arguments[0].endswith("setup_worker.py"):
        setup: Any
        setup, arguments = setup_worker.parser.parse_known_args(arguments[1:])
        context = RuntimeEnvContext.deserialize(setup.serialized_runtime_env_context or "{}")
        os.environ.update(context.env_vars)
    sys.argv = [argument for argument in arguments if argument not in ("-s", "-S")]
    runpy.run_path(sys.argv[0], run_name="__main__")
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])
