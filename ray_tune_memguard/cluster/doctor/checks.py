"""All checks of the doctor. Each is a function of the facts, without side effects."""

from __future__ import annotations

from dataclasses import replace

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
    found = [_placed(finding, facts) for check in CHECKS for finding in check(facts)]
    return sorted(found, key=lambda finding: -finding.severity)


def _placed(finding: Finding, facts: Facts) -> Finding:
    """The finding with remedies that say which settings the head was started with."""
    remedies = tuple(
        replace(remedy, is_in_system_config=True)
        if not remedy.is_start_argument and remedy.name in facts.system_config
        else remedy
        for remedy in finding.remedies
    )
    return replace(finding, remedies=remedies)
