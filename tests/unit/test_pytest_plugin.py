"""The plugin as pytest runs it, with measurements that are given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Here, because pytester forgets what is imported within its runs, and Ray does not bear that.
import ray_tune_memguard.testing  # noqa: F401

ROOT = Path(__file__).parents[2]
pytest_plugins = ["pytester"]
HEAD = """
import pytest
from ray_tune_memguard.diagnostics.trend import Trend
from ray_tune_memguard.testing.verdict import Measurement

def measured(memguard, slope, trials=300):
    growth = Trend(slope, slope - 1, slope + 1, steady=True)
    memguard.callback.measurements.append(Measurement(trials, growth))

"""


def run(pytester: pytest.Pytester, source: str) -> pytest.RunResult:
    pytester.makepyfile(HEAD + source)
    return pytester.runpytest_inprocess("-p", "ray_tune_memguard_pytest", "--strict-markers")


def test_a_test_fails_only_above_its_limit(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.memguard(bytes_per_trial="2 KB", trials=300)
def test_leaks(memguard):
    measured(memguard, 9000.0)

@pytest.mark.memguard(bytes_per_trial="10 KB")
def test_may_leak(memguard):
    measured(memguard, 9000.0)

def test_has_the_defaults(memguard):
    measured(memguard, 1000.0)
    assert memguard.trials == 300

@pytest.mark.memguard(trials=400)
def test_one_of_two_sweeps_leaks(memguard):
    measured(memguard, 0.0, trials=400)
    measured(memguard, 3000.0, trials=400)
""",
    )
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*The driver's memory grows by +8.8 KiB per trial *bytes_per_trial=2.0 KiB is allowed.",
            "*The driver's memory grows by +2.9 KiB per trial *",
        ]
    )


def test_what_could_not_be_judged_fails(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_too_short(memguard):
    measured(memguard, 0.0, trials=250)

def test_without_a_sweep(memguard):
    pass

@pytest.mark.memguard
def test_without_the_fixture():
    pass
""",
    )
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines_random(
        [
            "Too few trials to judge growth: 250 finished *",
            "No sweep was measured: call memguard.run*",
            "The test has the marker memguard, and does not use the fixture memguard, *",
        ]
    )


def test_a_fixture_that_a_test_asks_for_and_sweeps_of_other_fixtures(
    pytester: pytest.Pytester,
) -> None:
    result = run(
        pytester,
        """
@pytest.mark.memguard(bytes_per_trial="2 KB")
def test_asks_for_it(request):
    measured(request.getfixturevalue("memguard"), 9000.0)

@pytest.fixture
def late(memguard):
    yield
    measured(memguard, 8000.0)

def test_whose_fixture_leaks_as_it_ends(memguard, late):
    measured(memguard, 0.0)
""",
    )
    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines_random(
        [
            "*The driver's memory grows by +8.8 KiB per trial *",
            "*The driver's memory grows by +7.8 KiB per trial *",
        ]
    )


def test_a_test_that_fails_says_why_itself(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_is_wrong(memguard):
    assert 1 == 2

def test_is_skipped(memguard):
    pytest.skip("not here")
""",
    )
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines(["E*assert 1 == 2"])
    result.stdout.no_fnmatch_line("*No sweep was measured*")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("bytes_per_trial='2 KX'", "*ValueError: bytes_per_trial must be *got '2 KX'"),
        ("trials=10", "*ValueError: trials must be a whole number of at least 200; got 10"),
        (
            "bytes=3",
            "*TypeError: the marker memguard takes bytes_per_trial= and trials=; got bytes",
        ),
        ("300", "*TypeError: the marker memguard takes bytes_per_trial= and trials=; got 300"),
    ],
)
def test_bad_arguments_of_the_marker(
    pytester: pytest.Pytester, arguments: str, message: str
) -> None:
    source = f"@pytest.mark.memguard({arguments})\ndef test_it(memguard):\n    pass\n"
    result = run(pytester, source)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([message])


def test_a_fixture_of_that_name_of_somebody_else_is_left_alone(pytester: pytest.Pytester) -> None:
    source = "@pytest.fixture\ndef memguard():\n    return 7\n\ndef test_it(memguard):\n    pass\n"
    run(pytester, source).assert_outcomes(passed=1)


def test_a_run_that_does_not_use_it_imports_nothing(tmp_path: Path) -> None:
    """And an installed plugin that is also named with ``-p`` is registered once."""
    installed = tmp_path / "ray_tune_memguard-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: fake\nVersion: 1\n")
    entry = next(
        line
        for line in (ROOT / "pyproject.toml").read_text().partition("pytest11]\n")[2].splitlines()
    )
    (installed / "entry_points.txt").write_text(f"[pytest11]\n{entry.replace(chr(34), '')}\n")
    (tmp_path / "test_it.py").write_text(
        "import sys\n\n"
        "def test_it():\n"
        "    assert 'ray_tune_memguard_pytest' in sys.modules\n"
        "    assert not {'ray', 'ray_tune_memguard', 'numpy'} & set(sys.modules)\n"
    )
    for options in ([], ["-p", "ray_tune_memguard_pytest"]):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--strict-markers", *options, "test_it.py"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "1 passed" in done.stdout, done.stdout + done.stderr
