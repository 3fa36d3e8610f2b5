"""``memguard doctor``: what is set, or grows, in a way that costs memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from ray_tune_memguard.cli import output
from ray_tune_memguard.cli.exit_codes import CommandError, ExitCode

if TYPE_CHECKING:
    from ray_tune_memguard.cluster.doctor.facts import Facts, PlanFacts
    from ray_tune_memguard.cluster.doctor.findings import Finding

_FORMS = ("env", "system-config", "kuberay", "slurm")
_STYLES = {"note": "cyan", "warning": "yellow", "severe": "bold red"}
_CODES = {"warning": ExitCode.WARNING, "severe": ExitCode.SEVERE}


@click.command()
@click.option(
    "--address",
    envvar="RAY_ADDRESS",
    metavar="HOST:PORT",
    help="The cluster, as `ray start --head` prints it. Without it (and without RAY_ADDRESS) only "
    "this machine and its environment variables are examined.",
)
@click.option("--trials", type=click.IntRange(min=1), help="How many trials are planned.")
@click.option(
    "--storage",
    type=click.Path(exists=True),
    help="Where the results go (storage_path), for the number of inodes.",
)
@click.option(
    "--code",
    type=click.Path(exists=True),
    multiple=True,
    help="A Python file, or a directory of them, that will run; may be repeated.",
)
@click.option(
    "--fix",
    type=click.Choice(_FORMS),
    help="Print only the settings that mend the findings, in this form.",
)
@output.json_option
@click.pass_context
def doctor(
    context: click.Context,
    address: str | None,
    trials: int | None,
    storage: str | None,
    code: tuple[str, ...],
    fix: str | None,
    as_json: bool,
) -> None:
    """Find what costs memory on a cluster, and the settings that mend it.

    The doctor looks at one running cluster, or, without an address, at this machine before Ray
    starts on it. It starts no worker and no driver, needs no dashboard, and changes nothing. With
    grpcio (the extra "objects") it also tells which idle workers own objects.

    It finds idle workers that never end, own objects, hold memory or use CPU time; a memory monitor
    that is off or too late; a cgroup's or Slurm's limit that Ray does not see; an object store that
    is sized for memory that is not yours; trials on the head; what gcs_server will keep; settings
    that Ray does not have; and, with --trials, --storage and --code, too few inodes and calls
    that this Ray has removed.

    \b
    Examples:
      memguard doctor
      memguard doctor --address 10.0.0.5:6379 --trials 20000
      memguard doctor --address 10.0.0.5:6379 --fix kuberay

    The exit code is 0 if there is nothing worse than a note, 10 with a warning, 20 with a severe
    finding.
    """
    from ray_tune_memguard.cluster.doctor import checks
    from ray_tune_memguard.cluster.doctor.fixes import Fix

    began = time.perf_counter()
    facts = _facts(address, _plan(trials, storage, code))
    found = checks.examine(facts)
    seconds = time.perf_counter() - began
    if fix is not None:
        text = Fix(found).text(fix)
        if as_json:
            output.show_json({"form": fix, "text": text})
        else:
            click.echo(text)
    elif as_json:
        output.show_json(
            {
                "address": address,
                "nodes": len(facts.nodes) if facts.is_cluster else 0,
                "seconds": round(seconds, 3),
                "findings": [finding.as_dict() for finding in found],
                "unseen": list(facts.unseen),
            }
        )
    else:
        _show(address, facts, found, seconds)
    worst = max((finding.severity for finding in found), default=None)
    context.exit(_CODES.get(worst.word, ExitCode.OK) if worst is not None else ExitCode.OK)


def _facts(address: str | None, plan: PlanFacts) -> Facts:
    if address is None:
        from ray_tune_memguard.cluster.doctor.machine import of_machine

        return of_machine(plan)
    from ray_tune_memguard.cluster.doctor import gather
    from ray_tune_memguard.cluster.gcs import ClusterStateError

    try:
        return gather.of_cluster(address, plan)
    except ClusterStateError as error:
        raise CommandError(str(error), ExitCode.UNREACHABLE) from error


def _plan(trials: int | None, storage: str | None, code: tuple[str, ...]) -> PlanFacts:
    from ray_tune_memguard.cluster.doctor import plans

    return plans.plan(trials, storage, code)


def _show(address: str | None, facts: Facts, found: list[Finding], seconds: float) -> None:
    output.show_text(_looked_at(address, facts, seconds))
    for finding in found:
        where = f"  ({finding.where})" if finding.where else ""
        output.show_text()
        output.show_text(
            f"{finding.severity.word.upper()}  {finding.what}{where}",
            _STYLES[finding.severity.word],
        )
        output.show_text(f"  {finding.why}")
        output.show_text(f"  Seen: {finding.evidence}")
        if finding.remedies:
            output.show_text(f"  Set:  {', '.join(map(str, finding.remedies))}")
        if finding.advice:
            output.show_text(f"  Do:   {finding.advice}")
    output.show_text()
    for sentence in facts.unseen:
        output.show_text(sentence, "dim")
    if any(finding.remedies for finding in found):
        forms = "|".join(_FORMS)
        output.show_text(f"To print these settings: --fix {forms}.")
    if not found:
        output.show_text("Nothing found.", "green")


def _looked_at(address: str | None, facts: Facts, seconds: float) -> str:
    version = ".".join(map(str, facts.ray_version))
    if not facts.is_cluster:
        from ray_tune_memguard.cluster.doctor.processes import local_addresses

        text = f"This machine and its environment (Ray {version}) were examined, and no cluster."
        running = local_addresses()
        if running:
            text += (
                f" Ray runs here, for you or for others: --address {' or '.join(running)} examines "
                "that as well."
            )
        return text
    count = len(facts.nodes)
    nodes = "1 node" if count == 1 else f"{count} nodes"
    return f"Ray {version} at {address}, {nodes}, examined in {seconds:.1f} s."
