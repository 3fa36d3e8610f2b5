"""The exit codes of all commands, and the errors that end a command with one of them."""

from __future__ import annotations

import enum

import click


class ExitCode(enum.IntEnum):
    """What the exit code of a command says. Programs may rely on the numbers."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    MISSING_EXTRA = 5
    WARNING = 10
    SEVERE = 20


#: The numbers in words; the help prints them.
MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "the command did what it was asked for, and found nothing wrong",
    ExitCode.FAILED: "the command failed; the message says why",
    ExitCode.USAGE: "an argument or an option is not allowed",
    ExitCode.NOT_FOUND: "the path holds nothing that the command reads",
    ExitCode.UNREACHABLE: "no Ray cluster answers at the address",
    ExitCode.MISSING_EXTRA: "the command needs a package that is not installed",
    ExitCode.WARNING: "the command found at least one warning",
    ExitCode.SEVERE: "the command found at least one severe problem",
}


class CommandError(click.ClickException):
    """Ends a command with a message on stderr and an exit code.

    Args:
        message: one or two sentences for the user.
        code: the exit code.
    """

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]


def missing_extra(package: str, extra: str) -> CommandError:
    """The error of a command that needs a package of one of the extras."""
    return CommandError(
        f'This needs {package}: pip install "ray-tune-memguard[{extra}]".', ExitCode.MISSING_EXTRA
    )


def page() -> str:
    """The exit codes as a section of a help page."""
    lines = [f"  {code.value:>2}  {meaning}" for code, meaning in MEANINGS.items()]
    return "\n".join(["\b", "Exit codes:", *lines])
