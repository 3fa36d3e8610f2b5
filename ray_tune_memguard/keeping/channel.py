"""The short way of a value from a process to the keeper's actor on the same machine.

A call of an actor takes a millisecond, and a value in its arguments goes into the object store,
from which the actor copies it into an object of its own. Here the process copies the value into
anonymous shared memory (``memfd_create``) and passes it over a Unix socket. The memory has no name,
so none is left behind if either process is killed. Where this does not work (not Linux, another
container), the value goes by the call.

This module is sent to the actors by value, so it uses nothing else of this package.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from pickle import PickleBuffer
from typing import Any

#: A larger value goes by the call: Ray can spill to disk what is in the object store.
MAX_BYTES = 64 * 2**20
#: Up to this size the shared memory stays allocated for the next value, which halves the time of
#: the copy.
_MAX_SPARE_BYTES = 8 * 2**20
#: An actor that does not answer for this time is asked by a call instead.
_TIMEOUT_S = 60.0
#: Bytes of a message that tell the length of the rest.
_LENGTH_BYTES = 4


def _address(keeper: str, number: int) -> bytes:
    # In Linux's abstract namespace: without a file, and gone with the process.
    return f"\0memguard-keeper-{keeper}-{number}".encode()


def _is_own_user(connection: socket.socket) -> bool:
    ids = "3i"  # Of the process, its user and its group.
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(ids))
    return bool(struct.unpack(ids, peer)[1] == os.getuid())


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the other end has closed the connection")
        data += part
    return data


def _receive_message(connection: socket.socket) -> Any:
    length = int.from_bytes(_receive(connection, _LENGTH_BYTES), "big")
    return json.loads(_receive(connection, length))


def _send_message(connection: socket.socket, message: object) -> None:
    data = json.dumps(message).encode()
    connection.sendall(len(data).to_bytes(_LENGTH_BYTES, "big") + data)


class Server:
    """The actor's end.

    Args:
        keeper: the id of the keeper.
        number: the number of the actor.
        keep: stores the parts of a value under a key, and returns the node.
        release: undoes that, for a process that has ended before it was told.
    """

    def __init__(
        self,
        keeper: str,
        number: int,
        keep: Callable[[str, list[memoryview], dict[str, Any]], str],
        release: Callable[[list[str]], None],
    ) -> None:
        self._keep = keep
        self._release = release
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(_address(keeper, number))
        self._listener.listen()
        threading.Thread(target=self._accept, name="memguard-keeper", daemon=True).start()

    def _accept(self) -> None:
        # Without room for one more file or thread all are refused at once, and go by calls.
        with self._listener:
            while True:
                try:
                    connection, _ = self._listener.accept()
                except OSError:
                    return
                try:
                    if not _is_own_user(connection):
                        raise ConnectionError("another user's process")
                    threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
                except ConnectionError:
                    connection.close()
                except Exception:
                    connection.close()
                    return

    def _serve(self, connection: socket.socket) -> None:
        """Store what one process sends until it ends."""
        memory = -1
        try:
            with connection:
                _, [memory], _, _ = socket.recv_fds(connection, 1, 1)
                while True:
                    self._store(connection, memory, *_receive_message(connection))
        except Exception:
            pass  # The process has ended, or makes a call, whose error it gets.
        finally:
            if memory >= 0:
                os.close(memory)

    def _store(
        self,
        connection: socket.socket,
        memory: int,
        key: str,
        sizes: list[int],
        about: dict[str, Any],
    ) -> None:
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        whole = memoryview(mmap.mmap(memory, sum(sizes), flags=flags, prot=mmap.PROT_READ))
        ends = list(itertools.accumulate(sizes))
        parts = [whole[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        node = self._keep(key, parts, about)
        try:
            _send_message(connection, node)
        except OSError:
            self._release([key])
            raise


class Channel:
    """A process's end.

    Args:
        keeper: the id of the keeper.
        number: the number of the actor, on this machine.

    Raises:
        OSError: there is no such way to the actor.
    """

    def __init__(self, keeper: str, number: int) -> None:
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no anonymous shared memory")
        self._lock = threading.RLock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._memory = -1
        try:
            self._socket.settimeout(_TIMEOUT_S)
            self._socket.connect(_address(keeper, number))
            if not _is_own_user(self._socket):
                raise ConnectionError("another user's process has the address")
            self._memory = os.memfd_create("memguard-keeper")
            socket.send_fds(self._socket, [b"m"], [self._memory])
        except BaseException:
            self.close()
            raise

    def keep(self, key: str, parts: Sequence[PickleBuffer], about: dict[str, Any]) -> str:
        """Let the actor store the parts of a value under a key; the node where it is.

        Raises:
            OSError: it cannot, or does not answer. The channel is of no more use.
        """
        with self._lock:
            try:
                sizes = self._write(parts)
                _send_message(self._socket, [key, sizes, about])
                node: str = _receive_message(self._socket)
                if sum(sizes) > _MAX_SPARE_BYTES:
                    os.ftruncate(self._memory, 0)
            except BaseException:
                self.close()
                raise
        return node

    def close(self) -> None:
        """Give the memory back. What another thread waits for ends with an error."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        # Not before the other thread is done: its numbers of files may be another file's then.
        with self._lock:
            self._socket.close()
            memory, self._memory = self._memory, -1
            if memory >= 0:
                os.close(memory)

    def _write(self, parts: Sequence[PickleBuffer]) -> list[int]:
        """Copy the parts into the shared memory, one behind the other; their sizes."""
        sizes: list[int] = []
        for part in parts:
            with part.raw() as data:
                begin, written = sum(sizes), 0
                while written < data.nbytes:
                    written += os.pwrite(self._memory, data[written:], begin + written)
                sizes.append(written)
        return sizes
