"""The pytest plugin: a marker and a fixture for tests whether a callback leaks.

pytest imports it in each of its runs, wherever ray-tune-memguard is installed. So it is not a
module of the package ``ray_tune_memguard``, whose import takes Ray's, and imports that only for a
test that uses the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ray_tune_memguard.testing import LeakTest

_NAME = "memguard"
_TEST = pytest.StashKey["LeakTest"]()
#: How many sweeps there were when the test's own function had ended.
_JUDGED = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f'{_NAME}(bytes_per_trial="2 KB", trials=300): the test fails if the memory of the driver '
        f"of its sweeps surely grows faster; it must use the fixture {_NAME} (ray-tune-memguard).",
    )


@pytest.fixture
def memguard(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LeakTest]:
    """Runs sweeps with what is tested, or measures those of the test, which fails if it leaks."""
    from ray_tune_memguard.testing import LeakTest

    mark = request.node.get_closest_marker(_NAME)
    storage = tmp_path_factory.mktemp(_NAME)
    with LeakTest(**_options(mark), storage=storage) as test:  # type: ignore[arg-type]
        request.node.stash[_TEST] = test
        yield test
        judged = request.node.stash.get(_JUDGED, None)
        # Sweeps that other fixtures have run since, as they ended.
        if judged is not None and len(test.callback.measurements) > judged:
            _judge(test, judged)


def _options(mark: pytest.Mark | None) -> dict[str, object]:
    """The arguments of the marker, checked to be known."""
    if mark is None:
        return {}
    unknown = [*map(repr, mark.args), *(mark.kwargs.keys() - {"bytes_per_trial", "trials"})]
    if unknown:
        raise TypeError(
            f"the marker {_NAME} takes bytes_per_trial= and trials=; got {', '.join(unknown)}"
        )
    return dict(mark.kwargs)


# After pytest's own, so that a test that fails by itself says why.
@pytest.hookimpl(trylast=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    test = item.stash.get(_TEST, None)
    if test is not None:
        item.stash[_JUDGED] = len(test.callback.measurements)
        _judge(test)
    elif item.get_closest_marker(_NAME) and _NAME not in getattr(item, "fixturenames", ()):
        pytest.fail(
            f"The test has the marker {_NAME}, and does not use the fixture {_NAME}, which "
            "measures its sweeps.",
            pytrace=False,
        )


def _judge(test: LeakTest, first: int = 0) -> None:
    """Fail if a sweep leaks; ``first``: the number of the first one that is judged."""
    found = test.problem(first)
    if found:
        pytest.fail(found, pytrace=False)
