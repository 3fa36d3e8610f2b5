"""Reads what the object stores of a running cluster hold, by its address, and who holds it.

Nothing is started, and no driver is registered: the control service tells the primary copies, the
raylets, with ``grpcio``, the rest; what is spilled now is in a file on each node, which is read on
this machine only.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ray_tune_memguard.cluster import gcs, raylet
from ray_tune_memguard.cluster.doctor.processes import argument, local_raylets
from ray_tune_memguard.cluster.gcs import NodeInfo
from ray_tune_memguard.cluster.object_holders import (
    MAX_REFERENCES,
    Holding,
    holder_of,
    holdings,
    unlisted,
)
from ray_tune_memguard.cluster.object_store import STORE, NodeStore, primary_bytes, spilled_now
from ray_tune_memguard.cluster.raylet import RayletReport

_MAX_THREADS = 16


@dataclass(frozen=True)
class Survey:
    """What the stores of a cluster hold.

    Attributes:
        stores: one for each node that is alive.
        held: who holds how much, the largest first; empty without ``grpcio``.
        unseen: a sentence for each thing that was not read.
    """

    stores: list[NodeStore]
    held: list[Holding]
    unseen: list[str]

    def in_words(self) -> list[tuple[NodeStore, list[str]]]:
        """Each store, and what its figures mean."""
        is_only_node = len(self.stores) == 1
        return [(store, store.sentences(is_only_node)) for store in self.stores]


def survey(address: str) -> Survey:
    """Read what the stores hold.

    Args:
        address: of the cluster's control service, ``host:port``.

    Raises:
        ClusterStateError: no cluster answers at the address.
    """
    with gcs.connected_to(address):
        alive = [node for node in gcs.nodes() if node.is_alive]
        free = gcs.available_resources()
        with ThreadPoolExecutor(_MAX_THREADS) as threads:
            answers = threads.map(_ask, alive)
            reports = {
                node.node_id: answer
                for node, answer in zip(alive, answers, strict=True)
                if answer is not None
            }
        held = holdings(reports, lambda _, worker: holder_of(worker))
    here = {
        node_id: Path(argument(process, "--session_dir="))
        for node_id, process in local_raylets().items()
    }
    stores = [
        _store(node, free.get(node.node_id), reports.get(node.node_id), here.get(node.node_id))
        for node in alive
    ]
    return Survey(stores, held, list(_unseen(stores, reports)))


def _ask(node: NodeInfo) -> RayletReport | None:
    return raylet.report(node.address, node.port, MAX_REFERENCES)


def _store(
    node: NodeInfo,
    free: dict[str, float] | None,
    report: RayletReport | None,
    session: Path | None,
) -> NodeStore:
    capacity = node.resources.get(STORE, 0.0)
    # What is used up lacks among the available resources.
    primary = None if free is None else primary_bytes(capacity, free.get(STORE, 0.0))
    spilled = None if session is None else spilled_now(node.node_id, session)
    if report is None:
        return NodeStore(node.node_id, node.address, int(capacity), primary, spilled)
    stats = report.store
    return NodeStore(
        node.node_id,
        node.address,
        int(capacity),
        primary,
        # What never was on disk is not there now.
        0 if stats.spilled == 0 else spilled,
        used=stats.used,
        created=stats.created,
        fallback=stats.fallback,
        restored=stats.restored,
    )


def _unseen(stores: Iterable[NodeStore], reports: dict[str, RayletReport]) -> Iterable[str]:
    stores = list(stores)
    elsewhere = [store.address for store in stores if store.spilled is None]
    if elsewhere:
        yield (
            f"What is spilled now was not read on {', '.join(elsewhere[:5])}"
            f"{', …' if len(elsewhere) > 5 else ''}: run the same command there."
        )
    if not raylet.is_available():
        yield (
            "What the stores use, and who holds objects, was not read: that needs grpcio "
            '(pip install "ray-tune-memguard[objects]").'
        )
    elif len(reports) < len(stores):
        silent = [store.address for store in stores if store.node not in reports]
        yield f"The raylets of {', '.join(silent[:5])} do not answer."
    too_many = unlisted(reports)
    if too_many:
        yield (
            f"Who holds objects was not read on nodes with more than {MAX_REFERENCES:,} "
            f"references; there are {too_many:,} of them."
        )
