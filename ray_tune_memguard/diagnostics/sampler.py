"""One look at a driver's memory: the split of its RSS, and every holder's share of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ray_tune_memguard.adapter.handle import RunHandle
from ray_tune_memguard.diagnostics import references
from ray_tune_memguard.diagnostics.breakdown import Split, split
from ray_tune_memguard.diagnostics.deep_size import Size, TimeBudgetExceededError, Walk, entries_of
from ray_tune_memguard.diagnostics.ranking import KnownHolder
from ray_tune_memguard.system.ray_processes import RayProcesses

#: What the holders may take at each look, and the types.
LONGEST_WALK_S = 0.2
#: Types, and growing globals with other processes, take turns of so many samples. Odd: a thinned
#: series keeps every second sample, and so some of each.
TURNS = 3
#: A type is followed once it has grown by one object for so many trials.
_TRIALS_A_NEW_OBJECT = 20
_MOST_TYPES = 80
#: Of so many holders it is known what they are.
_MOST_KNOWN = 2000
#: What a thread takes of malloc: its state in CPython and in glibc (measured with 200 idle ones).
_NATIVE_A_THREAD = 1024


@dataclass
class Sample:
    """Values by kind and name, as :class:`GrowthSeries` takes them."""

    values: dict[tuple[str, str], float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


class GrowthSampler:
    """Measures a run. Keeps names and numbers, no object of the sweep."""

    def __init__(self, run: RunHandle) -> None:
        self._run = run
        self._holders = run.retention_sites()
        self._globals = self._holders.GrowingGlobals() if self._holders else None
        self._processes = RayProcesses(run.ray_session())
        #: How many objects of each type there were after warm-up, at how many trials and results.
        self.first_types: dict[str, int] = {}
        self.first_at = (0, 0)
        #: Those that grow most.
        self.types: set[str] = set()
        self._looks = 0
        self.known: dict[str, KnownHolder] = {}

    @property
    def controller(self) -> Any | None:
        return self._run.controller

    def look(
        self, trials: int, results: int, is_warm: bool = False, thoroughly: bool = False
    ) -> Sample:
        """Measure now, after so many trials and results.

        ``is_warm``: warm-up is over. ``thoroughly``: also what is otherwise looked at now and then.
        """
        sample = Sample()
        is_others_turn = self._looks % TURNS == 1
        self._looks += 1
        if self._globals is not None and is_others_turn:
            self._globals.look(trials)
        held, complete = self._measure_holders(sample)
        parts = split()
        self._add_parts(sample, parts, held, complete)
        if is_warm and (thoroughly or not is_others_turn):
            self._count_types(sample, trials, results)
        if thoroughly or is_others_turn:
            for name, rss in self._processes.rss().items():
                sample.values["process", name] = float(rss)
        return sample

    def each_holder(self) -> Iterator[Any]:
        """The holders of the sweep; none on a Ray that is not known, or when the sweep is gone."""
        controller = self.controller
        if self._holders is not None and controller is not None:
            assert self._globals is not None
            yield from self._holders.holders_of(controller, self._globals.found)

    def barriers(self) -> set[int]:
        controller = self.controller
        if self._holders is None or controller is None:
            return set()
        return self._holders.barriers_of(controller)

    def _measure_holders(self, sample: Sample) -> tuple[Size, bool]:
        """The sum over all holders, and whether it is of all."""
        total = Size()
        controller = self.controller
        if self._holders is None or controller is None:
            sample.absent["holders"] = "this Ray is not one that this version knows"
            return total, False
        walk = Walk(self.barriers(), self._holders.trial_identity)
        deadline = time.perf_counter() + LONGEST_WALK_S
        late = []
        for holder in self.each_holder():
            left = deadline - time.perf_counter()
            try:
                # Half of what is left for one, so that others are measured, too.
                size = walk.measure(holder.value, left / 2)
            except TimeBudgetExceededError:
                late.append(holder.name)
                continue
            except Exception as error:  # A container that another thread is changing, say.
                sample.absent[holder.name] = f"it could not be measured: {error!r}"
                continue
            finally:
                if holder.name == self._holders.TRIALS:
                    walk.shut(self._holders.trials_in_memory(controller))
            self._add_holder(sample, holder, size)
            total.add(size)
        if late:
            more = f" and {len(late) - 3} more" if len(late) > 3 else ""
            sample.absent["sizes"] = (
                f"partial: no time for {', '.join(late[:3])}{more} "
                f"({LONGEST_WALK_S:g} s a look at most)"
            )
        return total, not late

    def _add_holder(self, sample: Sample, holder: Any, size: Size) -> None:
        assert self._holders is not None
        name = holder.name
        # Two classes may have the same name.
        sample.values["holder", name] = sample.values.get(("holder", name), 0.0) + size.total
        entries = entries_of(holder.value)
        if entries is not None:
            sample.values["entries", name] = float(entries)
        if name in self.known or len(self.known) < _MOST_KNOWN:
            part = "native" if 2 * size.native > size.total else "python"
            noisy = name == self._holders.THREADS
            self.known[name] = KnownHolder(holder.role, holder.owner, part, noisy)

    def _add_parts(self, sample: Sample, parts: Split, held: Size, complete: bool) -> None:
        values = sample.values
        values["part", "rss"] = float(parts.rss)
        sample.absent.update(parts.absent)
        # The larger Python blocks come from malloc; only the walk knows them from native memory.
        # It knows no small ones, where Python has no allocator of its own.
        if parts.python is not None and (complete or self._holders is None):
            python = parts.python + held.large
            values["part", "python"] = python
            if parts.malloc is not None:
                native = parts.malloc - held.large + (parts.other or 0)
                values["part", "native"] = native + (parts.stacks or 0)
            if complete:
                values["part", "python rest"] = python + held.native - held.total
                if parts.malloc is not None:
                    values["part", "native rest"] = native - held.native
        for name in ("slack", "shared"):
            value = getattr(parts, name)
            if value is not None:
                values["part", name] = float(value)
        if parts.stacks is not None and self._holders is not None:
            threads = ("holder", self._holders.THREADS)
            states = _NATIVE_A_THREAD * threading.active_count()
            values[threads] = values.get(threads, 0.0) + parts.stacks + states

    def _count_types(self, sample: Sample, trials: int, results: int) -> None:
        counts, complete = references.type_counts(LONGEST_WALK_S)
        if not complete:
            sample.absent["types"] = "partial: counted on a part of all objects"
        if not self.first_types:
            self.first_types, self.first_at = counts, (trials, results)
        enough = max(10, (trials - self.first_at[0]) // _TRIALS_A_NEW_OBJECT)
        grown = {name: count - self.first_types.get(name, 0) for name, count in counts.items()}
        most = sorted(grown, key=lambda name: -grown[name])[:_MOST_TYPES]
        self.types = {name for name in most if grown[name] >= enough}
        for name in self.types:
            sample.values["type", name] = float(counts[name])
