"""The classes of a user's script are not changed: what they keep in its globals stays there."""

from __future__ import annotations

from pathlib import Path

from tests.integration.own_process import said_by


def test_what_a_script_keeps_in_its_globals_is_what_ray_alone_leaves(tmp_path: Path) -> None:
    said = {
        kind: said_by(["tests.integration.state_of_a_script", str(tmp_path / kind), kind], 120)
        for kind in ("plain", "guarded")
    }
    assert said["plain"]["stopper"] >= 24
    assert said["guarded"] == said["plain"]
