"""The command ``ray-tune-memguard``, short ``memguard``."""

from __future__ import annotations

import io
import sys

import click

from ray_tune_memguard.cli import exit_codes
from ray_tune_memguard.cli.deaths import deaths
from ray_tune_memguard.cli.doctor import doctor
from ray_tune_memguard.cli.export import export
from ray_tune_memguard.cli.import_ import import_
from ray_tune_memguard.cli.objects import objects
from ray_tune_memguard.cli.profile import profile
from ray_tune_memguard.cli.report import report
from ray_tune_memguard.cli.show import show
from ray_tune_memguard.cli.top import top
from ray_tune_memguard.cli.trials import trials
from ray_tune_memguard.cli.verify import verify

_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=_HELP, epilog=exit_codes.page())
@click.version_option(package_name="ray-tune-memguard")
def main() -> None:
    """Look at the memory of Ray Tune sweeps, and of the clusters that they run on.

    Each command prints tables on a terminal (with the extra "cli"), plain text in a pipe, and JSON
    with --json. No command changes a sweep or a cluster. Only "import", and "export --to files",
    write into an experiment, and they change no file of Ray's.
    """
    # Names of files may be no text, and a terminal may not know the bars.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


for _command in (
    show,
    top,
    report,
    deaths,
    trials,
    profile,
    verify,
    export,
    import_,
    doctor,
    objects,
):
    main.add_command(_command)
