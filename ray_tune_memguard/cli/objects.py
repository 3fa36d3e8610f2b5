"""``memguard objects``: what the object store of a running cluster holds, in plain words."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ray_tune_memguard.cli import output
from ray_tune_memguard.cli.exit_codes import CommandError, ExitCode
from ray_tune_memguard.report.texts import one_line, size

if TYPE_CHECKING:
    from ray_tune_memguard.cluster.object_store import NodeStore
    from ray_tune_memguard.cluster.object_survey import Survey

#: The columns of a node, and what each means.
_COLUMNS = {
    "capacity": "what the store may hold in memory",
    "used": "what it holds now, primary copies and copies that were made for reading; `ray memory` "
    'calls it "full"',
    "primary": "the one copy of each object that stays until nothing refers to it; `ray memory` "
    'calls it "needed", which does not mean that more is needed',
    "spilled now": "objects that are on disk now, because they did not fit (`ray memory` prints "
    "what was written since the start instead)",
    "created": "all that was put into the store since the node started, restored copies included",
    "fallback": "objects that did not fit even after spilling; they are in files of the session's "
    "directory",
}


@click.command()
@click.option(
    "--address",
    envvar="RAY_ADDRESS",
    metavar="HOST:PORT",
    help="The cluster, as `ray start --head` prints it, or in RAY_ADDRESS.",
)
@click.option(
    "--rows", type=click.IntRange(min=1), default=10, help="How many holders. Default: 10."
)
@output.json_option
def objects(address: str | None, rows: int, as_json: bool) -> None:
    """Tell what the object store of a running cluster holds, and who holds it.

    The command shows for each node the store's capacity, what it uses, the primary copies, what is
    spilled to disk now and what was created since the start; what that means, in sentences; who
    holds most objects, and in which way; and what each word means. It starts neither a worker nor a
    driver. With grpcio (the extra "objects") it tells all of it, otherwise capacity, primary copies
    and what is spilled on this machine.

    \b
    Examples:
      memguard objects --address 10.0.0.5:6379
      memguard objects --address 10.0.0.5:6379 --rows 50
      RAY_ADDRESS=10.0.0.5:6379 memguard objects --json

    With RAY_record_ref_creation_sites=1, set before Ray starts, the lines that created the
    references are shown (each reference then takes a little longer).

    The exit code is 4 if no cluster answers at the address.
    """
    from ray_tune_memguard.cluster.gcs import ClusterStateError
    from ray_tune_memguard.cluster.object_survey import survey

    if address is None:
        raise CommandError(f"Name the cluster: --address HOST:PORT.{_running()}", ExitCode.USAGE)
    try:
        found = survey(address)
    except ClusterStateError as error:
        raise CommandError(str(error), ExitCode.UNREACHABLE) from error
    if as_json:
        output.show_json(
            {
                "address": address,
                "nodes": [
                    {**asdict(store), "sentences": sentences}
                    for store, sentences in found.in_words()
                ],
                "held": found.held,
                "unseen": found.unseen,
            }
        )
    else:
        _show(found, rows)


def _running() -> str:
    from ray_tune_memguard.cluster.doctor.processes import local_addresses

    running = local_addresses()
    return f" Ray runs here: --address {' or '.join(running)}." if running else ""


def _show(found: Survey, rows: int) -> None:
    output.show_table(
        ("node", *_COLUMNS), [_cells(store) for store in found.stores], numbers=tuple(_COLUMNS)
    )
    for store, sentences in found.in_words():
        where = f"{store.address}: " if len(found.stores) > 1 else ""
        for sentence in sentences:
            output.show_text(f"{where}{sentence}")
    kinds = _show_holders(found, rows)
    output.show_text()
    for word, meaning in {**_COLUMNS, **kinds}.items():
        output.show_text(f"{word}: {meaning}.", "dim")
    for sentence in found.unseen:
        output.show_text(sentence, "yellow")


def _cells(store: NodeStore) -> tuple[str, ...]:
    amounts = (
        store.capacity,
        store.used,
        store.primary,
        store.spilled,
        store.created,
        store.fallback,
    )
    return store.address, *map(size, amounts)


def _show_holders(found: Survey, rows: int) -> dict[str, str]:
    """Print who holds objects; return what the kinds of references in it mean."""
    from ray_tune_memguard.cluster.object_holders import KINDS

    if not found.held:
        return {}
    shown = found.held[:rows]
    # Ray records call sites on request only.
    width = 5 if any(holding.call_site for holding in found.held) else 4
    output.show_text()
    output.show_table(
        ("holder", "bytes", "objects", "how", "created at")[:width],
        [
            (
                one_line(holding.holder.name),
                size(holding.size),
                f"{holding.count:,}",
                holding.kind,
                one_line(holding.call_site),
            )[:width]
            for holding in shown
        ],
        title=f"Who holds objects ({len(shown)} of {len(found.held)} rows)",
        numbers=("bytes", "objects"),
    )
    return {kind: KINDS[kind] for kind in dict.fromkeys(holding.kind for holding in shown)}
