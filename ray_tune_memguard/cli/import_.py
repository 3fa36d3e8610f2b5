"""``memguard import``: a trial store for an experiment that Ray alone has run."""

from __future__ import annotations

import click

from ray_tune_memguard.cli import output
from ray_tune_memguard.cli.experiments import failures_of, location, path_argument


@click.command("import")
@path_argument
@output.json_option
def import_(path: str, as_json: bool) -> None:
    """Build the trial store of an experiment that ran without MemGuard.

    PATH is the experiment's directory. The store goes into .memguard in it; Ray's own files do not
    change. Afterwards Tuner.restore(PATH).get_results(), ExperimentAnalysis(PATH) and
    open_experiment(PATH) read results on access, and a resumed run leaves finished trials on disk.
    A damaged store is rebuilt from its intact rows and the experiment state file. A store that is
    there and whole stays as it is.

    \b
    Examples:
      memguard import ~/ray_results/sweep
      memguard import ~/ray_results/sweep --json

    The exit code is 1 if the run is not over, or the store cannot be written.
    """
    from ray_tune_memguard.adapter import handle

    with failures_of(path, "imported"):
        built = handle.import_experiment(location(path), None)
    if as_json:
        output.show_json(built)
        return
    done = "Built" if built.is_new else "There already:"
    output.show_text(f"{done} {built.store}, {built.trials:,} trials.", "green")
