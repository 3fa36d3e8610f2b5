"""Finds the retention sites of types whose number of objects grows."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass

from ray_tune_memguard.adapter.handle import is_users_type
from ray_tune_memguard.diagnostics import advice, references
from ray_tune_memguard.diagnostics.deadline import Deadline
from ray_tune_memguard.diagnostics.deep_size import DeepSizer, TimeBudgetExceededError
from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
from ray_tune_memguard.diagnostics.findings import GrowingSite, TypeGrowth
from ray_tune_memguard.diagnostics.ranking import (
    MIN_SITE_SLOPE,
    explained,
    is_unattributed_python,
    threshold_per,
)
from ray_tune_memguard.diagnostics.sampler import GrowthSampler

_MAX_SECONDS = 2.0
_MAX_SECONDS_A_PATH = 0.5
_MAX_SECONDS_A_SIZE = 0.1
#: Types with so many objects that none is typical.
_EVERYWHERE = ("builtins.", "collections.", "_thread.", "_io.")


@dataclass(frozen=True)
class _Unattributed:
    """A growing type whose objects are in no known retention site."""

    kind: TypeGrowth
    chain: references.Chain
    bytes_each: float
    example: object


def with_types(found: Diagnosis, sampler: GrowthSampler, is_collecting: bool) -> Diagnosis:
    """Add the chains of references that lead to objects of growing types.

    Args:
        found: a diagnosis from the series alone.
        sampler: lists the retention sites.
        is_collecting: whether the garbage collector is enabled.

    Returns:
        The diagnosis with paths to types, and with sites that were found by their types.
    """
    site_names = {id(site.value): site.name for site in sampler.sites()}
    roots = {**references.modules_by_namespace(), **site_names}
    barriers = sampler.barriers()
    has_unattributed = any(map(is_unattributed_python, found.holders))
    types: list[TypeGrowth] = []
    unattributed: list[_Unattributed] = []
    deadline = Deadline(_MAX_SECONDS)
    for kind in sorted(found.types, key=_type_priority):
        typical = [] if deadline.is_over() else references.typical_of(kind.name, most=2)
        if not typical:
            types.append(kind)
            continue
        chain = references.chain_up(typical[0], lambda at: roots.get(id(at)), _MAX_SECONDS_A_PATH)
        types.append(dataclasses.replace(kind, path=chain.words))
        is_telling = is_users_type(kind.name) or (
            has_unattributed and not kind.name.startswith(_EVERYWHERE)
        )
        if is_telling and chain.closed and chain.root not in site_names.values():
            each = _size_of_one_more(typical, barriers)
            if each * kind.slope >= threshold_per(MIN_SITE_SLOPE, found.unit):
                unattributed.append(_Unattributed(kind, chain, each, typical[0]))
    types.sort(key=lambda kind: -kind.slope)
    more: list[GrowingSite] = []
    within: set[str] = set()
    for one in sorted(unattributed, key=lambda one: -one.bytes_each):
        if one.kind.name not in within:
            within |= references.types_within(one.example)
            more.append(_site_of(one, is_collecting))
    found = dataclasses.replace(found, types=types)
    return explained(found, more) if more else found


def _type_priority(kind: TypeGrowth) -> int:
    """The sort key of types: those that belong to one piece of code come first."""
    if is_users_type(kind.name):
        return 0
    package = kind.name.partition(".")[0]
    if kind.name.startswith(_EVERYWHERE):
        return 4
    if package in sys.stdlib_module_names:
        return 3
    return 2 if package == "ray" else 1


def _size_of_one_more(typical: list[object], barriers: set[int]) -> float:
    """The size of the last of these objects without shared parts; 0 if it takes too long."""
    sizer = DeepSizer(barriers)
    try:
        return [sizer.measure(found, _MAX_SECONDS_A_SIZE).total for found in typical][-1]
    except TimeBudgetExceededError:
        return 0.0


def _site_of(one: _Unattributed, is_collecting: bool) -> GrowingSite:
    kind, chain = one.kind, one.chain
    slope = kind.slope * one.bytes_each
    if chain.root is None:
        name, path = f"unreachable {kind.name}", ""
        recommendation = advice.of_cycles(slope, kind.unit, is_collecting)
    else:
        name, path = chain.words.split(" → ")[0], chain.words
        circumstances = advice.Circumstances(unit=kind.unit)
        recommendation = advice.of_site(name, "module", "library", slope, circumstances)
    return GrowingSite(
        name,
        "python",
        slope,
        kind.uncertainty * one.bytes_each,
        kind.count * one.bytes_each,
        path,
        recommendation,
        kind.unit,
    )
