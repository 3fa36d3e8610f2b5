"""Whether leak tests are right: ``python -m tests.acceptance pytest-plugin [--rounds N]``.

Runs the tests of ``leak_tests`` with pytest, all in one process: five that leak 10 KB per trial, in
a callback, a searcher and a scheduler, and the same five with a bound; 300 real trials each, and a
limit of 2 KB per trial. A test is right if it passes without a leak, or fails with one and names
its place first. Prints a row for each. Ends with 1 if one was wrong.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.machine import describe_machine, machine_line
from benchmarks.runner import LOG_LINES_SHOWN, RESULTS_DIRECTORY, ROOT, positive

_TESTS = 10


@dataclass(frozen=True)
class Outcome:
    """What one test said.

    Attributes:
        message: why it failed; empty if it passed.
        found: what it recorded: slopes in bytes per trial, seconds.
    """

    case: str
    leaks: bool
    message: str
    found: dict[str, float]

    @property
    def is_right(self) -> bool:
        """Whether it passed without a leak, or named the leak's place first."""
        if not self.leaks or not self.message:
            return not self.leaks and not self.message
        _, _, named = self.message.partition("What grows, by bytes per trial:\n")
        return f"  {self.case.partition(':')[0]} (" in named.partition("\n")[0]

    def __str__(self) -> str:
        low, slope, high, malloc, rss = (
            f"{self.found[name]:,.0f}" for name in ("low", "slope", "high", "malloc", "rss")
        )
        kind = "leaks" if self.leaks else "clean"
        verdict = "failed" if self.message else "passed"
        return (
            f"{kind}  {self.case:<22}{slope:>8}{f'{low} … {high}':>20}{malloc:>9}{rss:>9}"
            f"{self.found['seconds']:>7.0f} s  {verdict}, {'right' if self.is_right else 'WRONG'}"
        )


def read_outcomes(path: Path) -> Iterator[Outcome]:
    """The outcomes in a JUnit file of ``leak_tests``."""
    for test in ElementTree.parse(path).iter("testcase"):
        recorded = {
            one.get("name", ""): one.get("value", "")
            for one in test.iterfind("properties/property")
        }
        case, leaks = recorded.pop("case", ""), recorded.pop("leaks", "")
        failure = test.find("failure")
        message = "" if failure is None else failure.text or "?"
        if not {"slope", "rss"} <= recorded.keys():
            raise RuntimeError(f"{test.get('name')} has measured nothing: {message[-2000:]}")
        found = {name: float(value) for name, value in recorded.items()}
        yield Outcome(case, leaks == "1", message, found)


def _run_tests(directory: Path) -> list[Outcome]:
    report = directory / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "ray_tune_memguard_pytest"]
    command += ["-p", "no:cacheprovider", "--junitxml", str(report)]
    command += ["--basetemp", str(directory / "tests"), "tests/acceptance/leak_tests.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError("\n".join(done.stdout.splitlines()[-LOG_LINES_SHOWN:]))
    return list(read_outcomes(report))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tests, print each row as its round ends."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.acceptance pytest-plugin", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=positive, default=2, help="rounds of ten tests each")
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY)
    arguments = parser.parse_args(argv)
    print(machine_line(describe_machine()))
    print("Bytes per trial: what the test measures, its 95 % interval, malloc's use, RSS")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="tmp-") as directory:
        for _ in range(arguments.rounds):
            found = _run_tests(Path(directory))
            print("\n".join(map(str, found)), flush=True)
            outcomes += found
    right = sum(one.is_right for one in outcomes)
    leaking = sum(one.leaks for one in outcomes)
    print(f"\nright: {right} of {len(outcomes)} ({leaking} with a leak of 10 KB per trial)")
    return 0 if right == len(outcomes) == _TESTS * arguments.rounds else 1


if __name__ == "__main__":
    sys.exit(main())
