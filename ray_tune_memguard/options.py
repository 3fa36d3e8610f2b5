"""Reads the callbacks' options from arguments, environment variables or defaults, in this order.

Ray constructs the callbacks in ``RAY_TUNE_CALLBACKS`` without arguments, so the environment
variable ``TUNE_MEMGUARD_<OPTION>`` sets each option as well.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Final, TypeVar

# Of sizes: 1000 by 1000, or 1024 by 1024 if the unit has an "i".
_UNITS = "BKMGT"
_SIZE = re.compile(r"(?P<number>\d+(\.\d*)?) *(?P<unit>([KMGT]i?)?B?)", re.IGNORECASE)
ENVIRONMENT_PREFIX = "TUNE_MEMGUARD_"
T = TypeVar("T")


class Unset(Enum):
    """The default argument of every option: use the environment variable or the default value."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET


def resolve(
    name: str,
    given: object,
    default: object,
    parse: Callable[[str, object], T],
    prefix: str = "",
) -> T:
    """The value of an option.

    Args:
        name: the option's name.
        given: the argument, or :data:`UNSET`.
        default: the default value.
        parse: checks and converts a value; its first argument is the name for error messages.
        prefix: comes before the name in the environment variable's.

    Raises:
        ValueError, TypeError: the value is not allowed. The message names the argument or the
            environment variable, the value, and the allowed values.
    """
    if given is not UNSET:
        return parse(name, given)
    variable = ENVIRONMENT_PREFIX + f"{prefix}{name}".upper()
    text = os.environ.get(variable, "")
    return parse(variable, _from_text(text)) if text else parse(name, default)


def _from_text(text: str) -> object:
    """A number if the text is one, None for ``none``, otherwise the text."""
    if text.lower() == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def count(name: str, value: object) -> int:
    """A positive whole number."""
    return _whole(name, value, "a whole number of at least 1")


def count_of_at_least(least: int) -> Callable[[str, object], int]:
    """A whole number of at least ``least``."""
    return lambda name, value: _whole(name, value, f"a whole number of at least {least}", least)


def count_or_none(name: str, value: object) -> int | None:
    """A positive whole number, or None for never."""
    return None if value is None else _whole(name, value, "a whole number of at least 1, or None")


def flag(name: str, value: object) -> bool:
    """True or False; 1 or 0 from an environment variable."""
    allowed = "True or False (1 or 0 as an environment variable)"
    if not isinstance(value, (bool, int)):
        raise TypeError(f"{name} must be {allowed}; got {value!r}")
    if value not in (0, 1):
        raise ValueError(f"{name} must be {allowed}; got {value!r}")
    return bool(value)


def one_of(*allowed: str) -> Callable[[str, object], str]:
    """One of a few texts."""

    def parse(name: str, value: object) -> str:
        choices = " or ".join(map(repr, allowed))
        if not isinstance(value, str):
            raise TypeError(f"{name} must be {choices}; got {value!r}")
        if value not in allowed:
            raise ValueError(f"{name} must be {choices}; got {value!r}")
        return value

    return parse


def count_text_or_function(
    *texts: str,
) -> Callable[[str, object], int | str | Callable[..., object]]:
    """A positive whole number, one of a few texts, or a function."""

    def parse(name: str, value: object) -> int | str | Callable[..., object]:
        allowed = f"{', '.join(map(repr, texts))}, a whole number of at least 1, or a function"
        if isinstance(value, str):
            if value not in texts:
                raise ValueError(f"{name} must be {allowed}; got {value!r}")
            return value
        return value if callable(value) else _whole(name, value, allowed)

    return parse


def share(name: str, value: object) -> float:
    """A number from 0 to 1."""
    return _real(name, value, "a number from 0 to 1", lambda given: 0 <= given <= 1)


def seconds_or_none(name: str, value: object) -> float | None:
    """A positive, finite number of seconds, or None for never."""
    if value is None:
        return None
    allowed = "a positive number of seconds, or None"
    return _real(name, value, allowed, lambda given: 0 < given < math.inf)


def fraction_or_none(name: str, value: object) -> float | None:
    """A number above 0 and at most 1, or None for the default."""
    if value is None:
        return None
    return _real(name, value, "a number above 0 and up to 1, or None", lambda given: 0 < given <= 1)


_SIZES = 'a positive number of bytes, also as text with a unit ("2 GB", "512 MiB")'


def size(name: str, value: object) -> int:
    """A positive number of bytes, also with a unit such as ``"2 GB"`` or ``"512 MiB"``.

    Examples:
        >>> size("bytes_per_trial", "2 KB")
        2000
    """
    return _bytes(name, value, _SIZES)


def size_or_none(name: str, value: object) -> int | None:
    """A positive number of bytes, also with a unit such as ``"2 GB"`` or ``"512 MiB"``, or None.

    Examples:
        >>> size_or_none("memory_per_trial", "1.5 GiB")
        1610612736
    """
    return None if value is None else _bytes(name, value, f"{_SIZES}, or None")


def _bytes(name: str, value: object, allowed: str) -> int:
    if isinstance(value, str):
        found = _SIZE.fullmatch(value.strip())
        exponent = None if found is None else _UNITS.find(found["unit"][:1].upper() or "B")
        if found is None or exponent is None or exponent < 0:
            raise ValueError(f"{name} must be {allowed}; got {value!r}")
        base = 1024 if "i" in found["unit"].lower() else 1000
        value = float(found["number"]) * base**exponent
    return int(_real(name, value, allowed, lambda given: 1 <= given < math.inf))


def port_or_none(name: str, value: object) -> int | None:
    """A port from 0 (one that is free) to 65535, or None for none."""
    if value is None:
        return None
    allowed = "a port from 0 to 65535, or None"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be {allowed}; got {value!r}")
    if not 0 <= value <= 65535:
        raise ValueError(f"{name} must be {allowed}; got {value!r}")
    return value


def host(name: str, value: object) -> str:
    """The name or the address of a network interface."""
    allowed = 'the name or the address to listen on, such as "127.0.0.1"'
    if not isinstance(value, str):
        raise TypeError(f"{name} must be {allowed}; got {value!r}")
    if not value.strip():
        raise ValueError(f"{name} must be {allowed}; got {value!r}")
    return value.strip()


def mebibytes_or_none(name: str, value: object) -> float | None:
    """A finite number of MiB of at least 0, or None for never."""
    if value is None:
        return None
    allowed = "a number of MiB of at least 0, or None"
    return _real(name, value, allowed, lambda given: 0 <= given < math.inf)


def _whole(name: str, value: object, allowed: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be {allowed}; got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {allowed}; got {value!r}")
    return value


def _real(name: str, value: object, allowed: str, is_allowed: Callable[[float], bool]) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be {allowed}; got {value!r}")
    if not is_allowed(value):
        raise ValueError(f"{name} must be {allowed}; got {value!r}")
    return float(value)


def directory_or_none(name: str, value: object) -> Path | None:
    """A directory, which is created and written to as a check; None for the default."""
    if value is None:
        return None
    allowed = "the path of a writable directory, or None"
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be {allowed}; got {value!r}")
    path = Path(value).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".memguard-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{name} must be {allowed}; got {str(value)!r} ({error})") from error
    return path
