"""Checks of what the user plans: the code, the storage, the settings that were given."""

from __future__ import annotations

from collections.abc import Iterator

from ray_tune_memguard.cluster.doctor.facts import Facts
from ray_tune_memguard.cluster.doctor.findings import Finding, Severity
from ray_tune_memguard.cluster.settings import NEWEST_KNOWN, OLDEST_KNOWN

_OWNER_REMOVED = (2, 56)
#: A trial's directory and what Tune's loggers write into it.
INODES_PER_TRIAL = 6
_MAX_INODES_SHARE = 0.5


def owner_removed(facts: Facts) -> Iterator[Finding]:
    """The code passes ``_owner`` to ``ray.put``."""
    calls = facts.plan.owner_calls
    if not calls:
        return
    is_removed = facts.ray_version >= _OWNER_REMOVED
    yield Finding(
        "owner-removed",
        Severity.SEVERE if is_removed else Severity.NOTE,
        "The code calls ray.put(…, _owner=…), which "
        + ("this Ray no longer has." if is_removed else "Ray 2.56 has removed."),
        "An object dies with its owner; this argument gave it another one. "
        + ("The call raises ValueError." if is_removed else "Later Rays raise ValueError."),
        ", ".join(calls),
        advice="Return the value from the task, so that its caller owns it; or let an actor that "
        "lives longer submit the task, or put the value.",
    )


def too_few_inodes(facts: Facts) -> Iterator[Finding]:
    """The storage has too few inodes for the planned trials."""
    trials, free = facts.plan.trials, facts.plan.free_inodes
    if trials is None or free is None:
        return
    needed = trials * INODES_PER_TRIAL
    if needed > _MAX_INODES_SHARE * free:
        yield Finding(
            "too-few-inodes",
            Severity.SEVERE if needed > free else Severity.WARNING,
            f"{trials:,} trials need about {needed:,} inodes; {facts.plan.storage} has {free:,}.",
            "Without a free inode no file can be created, although there is room: Ray then fails "
            "with “No space left on device”.",
            f"{INODES_PER_TRIAL} inodes for each trial: its directory and five files.",
            advice="Choose another storage_path, or remove old experiments (df -i).",
        )


def unknown_setting(facts: Facts) -> Iterator[Finding]:
    """A setting was given that Ray does not have."""
    if facts.unknown_settings:
        names = ", ".join(f"RAY_{name}" for name in facts.unknown_settings)
        yield Finding(
            "setting-unknown",
            Severity.WARNING,
            f"Ray does not have these settings: {names}.",
            "Ray ignores a variable that it does not know without a word.",
            "The Ray that is installed here does not read them.",
            advice="See the names of the release that you use; some were renamed.",
        )


def unknown_version(facts: Facts) -> Iterator[Finding]:
    """The table of settings does not describe this version of Ray."""
    if not OLDEST_KNOWN <= facts.ray_version <= NEWEST_KNOWN:
        version = ".".join(map(str, facts.ray_version))
        yield Finding(
            "ray-version-unknown",
            Severity.NOTE,
            f"The defaults of Ray {version} are not known to this version of ray-tune-memguard.",
            "Settings that were not given are judged by the defaults of the nearest version.",
            f"Known: {'.'.join(map(str, OLDEST_KNOWN))} to {'.'.join(map(str, NEWEST_KNOWN))}.",
        )


CHECKS = (owner_removed, too_few_inodes, unknown_setting, unknown_version)
