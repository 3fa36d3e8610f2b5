"""The table of Ray's settings fits the Ray that is installed."""

from __future__ import annotations

import re
from pathlib import Path

import ray

from ray_tune_memguard.cluster import settings

VERSION = settings.version_of(ray.__version__)


def test_this_ray_has_the_settings_of_its_version_and_no_others() -> None:
    names = set(settings.BY_NAME)
    assert settings.unknown_to_ray(names) == sorted(names - set(settings.known_in(VERSION)))


def test_a_name_that_ray_never_had_is_unknown() -> None:
    gone = "maximum_gcs_dead_actor_cached_count"
    assert settings.unknown_to_ray([gone, "memory_usage_threshold"]) == [gone]


def test_a_variable_that_only_rays_python_reads_is_known() -> None:
    ours = Path(ray.__file__).parent
    found = {
        name.decode()
        for file in ours.rglob("*.py")
        for name in re.findall(rb"\bRAY_([a-z]\w*)", file.read_bytes())
    }
    assert "allow_out_of_band_object_ref_serialization" in found
    assert settings.unknown_to_ray(found) == []


def test_a_setting_of_the_head_wins_over_a_variable_and_that_over_the_default() -> None:
    name = "memory_usage_threshold"
    assert settings.effective(name, {name: 0.5}, {name: "0.7"}) == 0.5
    assert settings.effective(name, {}, {name: "0.7"}) == 0.7
    assert settings.effective(name, {}, {name: "much"}) == 0.95
    assert settings.effective("worker_killing_policy_by_group", {}, {}) is False
    given = {"worker_killing_policy_by_group": "true"}
    assert settings.effective("worker_killing_policy_by_group", {}, given) is True


def test_only_settings_are_read_from_the_environment() -> None:
    environment = {"RAY_AUTH_TOKEN": "secret", "RAY_memory_monitor_refresh_ms": "0", "PATH": "/"}
    assert settings.given_in(environment) == {"memory_monitor_refresh_ms": "0"}
