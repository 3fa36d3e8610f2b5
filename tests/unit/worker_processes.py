"""Real processes that use memory on command, and say what they see of it themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from types import TracebackType
from typing import Any

MIB = 2**20

# Reads a command a line: take or free MiB, fork a child that takes some, end it, or tell.
_PROGRAM = """
import json, os, sys

def seen():
    found = {}
    for line in open("/proc/self/status"):
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM", "RssAnon"):
            found[name] = int(value.split()[0]) * 1024
    return found

held = []
for line in sys.stdin:
    command, size = line.split()
    size = int(size)
    if command == "take":
        held.append(bytearray(b"1") * (size * 2**20))
    elif command == "free":
        held.clear()
    elif command == "fork":
        down, up = os.pipe(), os.pipe()
        if os.fork() == 0:
            held.append(bytearray(b"1") * (size * 2**20))
            os.write(up[1], json.dumps(seen()).encode())
            os.close(down[1])
            os.read(down[0], 1)
            os._exit(0)
        print(os.read(up[0], 1000).decode(), flush=True)
        continue
    elif command == "join":
        os.close(down[1])
        os.wait()
    print(json.dumps(seen()), flush=True)
"""


class WorkerProcess:
    """A process; each command returns what it, or the child it forked, sees in bytes."""

    def __enter__(self) -> WorkerProcess:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.tell()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def take(self, mib: int) -> dict[str, int]:
        return self._do("take", mib)

    def free(self) -> dict[str, int]:
        return self._do("free")

    def fork(self, mib: int) -> dict[str, int]:
        return self._do("fork", mib)

    def join(self) -> dict[str, int]:
        return self._do("join")

    def tell(self) -> dict[str, int]:
        return self._do("tell")

    def _do(self, command: str, mib: int = 0) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command} {mib}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())
