"""Trials that use memory in several ways, and report what they see of it themselves."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ray import tune

MIB = 2**20


def seen() -> dict[str, int]:
    """RSS and anonymous memory of this process in bytes, as it sees them."""
    found = {}
    with open("/proc/self/status") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name in ("VmRSS", "RssAnon"):
                found[name] = int(value.split()[0]) * 1024
    return found


def take(size: int) -> bytearray:
    return bytearray(b"1") * (size * MIB)


def child_takes(size: int, seconds: float) -> dict[str, int]:
    """What a forked child sees that takes memory for some time."""
    read, write = os.pipe()
    if os.fork() == 0:
        held = take(size)
        os.write(write, json.dumps(seen()).encode())
        time.sleep(seconds)
        del held
        os._exit(0)
    told: dict[str, int] = json.loads(os.read(read, 1000))
    os.wait()
    return told


def uses_memory(config: dict[str, Any]) -> None:
    """Reports its highest sizes: ``rss`` and ``anonymous``, in bytes."""
    kind, size = config["kind"], config["size"]
    if kind == "short":
        # Between two looks, and between two reports.
        time.sleep(0.3)
        held = take(size)
        highest = seen()
        del held
        time.sleep(1.2)
    elif kind == "child":
        own, child = seen(), child_takes(size, seconds=3.5)
        highest = {
            "VmRSS": own["VmRSS"] + child["VmRSS"],
            # It shares the pages that it got by the fork.
            "RssAnon": own["RssAnon"] + size * MIB,
        }
    else:
        held = take(size)
        time.sleep(1.5)
        highest = seen()
    tune.report({"rss": highest["VmRSS"], "anonymous": highest["RssAnon"], "score": 0})
