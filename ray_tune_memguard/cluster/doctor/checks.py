"""All checks of the doctor. Each is a function of the facts, without side effects."""

from __future__ import annotations

from ray_tune_memguard.cluster.doctor import (
    head_checks,
    idle_checks,
    memory_checks,
    plan_checks,
)
from ray_tune_memguard.cluster.doctor.facts import Facts
from ray_tune_memguard.cluster.doctor.findings import Finding

CHECKS = (
    *memory_checks.CHECKS,
    *idle_checks.CHECKS,
    *head_checks.CHECKS,
    *plan_checks.CHECKS,
)


def examine(facts: Facts) -> list[Finding]:
    """The findings of all checks, the worst first."""
    found = [finding for check in CHECKS for finding in check(facts)]
    return sorted(found, key=lambda finding: -finding.severity)
