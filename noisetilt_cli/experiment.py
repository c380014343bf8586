"""`noisetilt experiment`: the tables of the papers."""

from pathlib import Path
from typing import Any

import click

from .options import (
    compute_options,
    dry_run_option,
    dtype_option,
    non_finite_option,
    quantize_option,
    reward_decoder_option,
    source_option,
)


@click.command()
@click.argument("name", required=False, metavar="[NAME|FILE]")
@click.option("--list", "list_names", is_flag=True, help="List the bundled experiments and exit.")
@click.option(
    "--only",
    multiple=True,
    metavar="METHOD",
    help="Run only these rows: a label of the table, or a sampler such as ntrk; may be repeated.",
)
@click.option(
    "--prompts",
    type=click.IntRange(1),
    metavar="N",
    help="Use only the first N prompts of each table.  [default: all]",
)
@click.option(
    "--model",
    metavar="NAME|FOLDER|ID",
    help="Model in place of the experiment's, such as a folder with its weights.",
)
@dtype_option
@quantize_option
@reward_decoder_option
@source_option
@non_finite_option
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the experiment; created if necessary."
)
@click.option("--resume", is_flag=True, help="Continue the experiment in the folder.")
@click.option(
    "--report",
    "only_report",
    is_flag=True,
    help="Only write the report of the images that are finished so far, also while the experiment runs.",
)
@dry_run_option
@compute_options
def experiment(**options: Any) -> None:
    """Carry out an experiment of a paper, and put the results beside the paper's.

    NAME is a bundled experiment, or a TOML file of your own. Prints the table. Writes report.md, report.json
    and report.html to the folder.

    \b
    Examples:
      noisetilt experiment --list
      noisetilt experiment digits --prompts 2 --out digits/
      noisetilt experiment aesthetic-flux --only NTRK --dry-run
    """
    from noisetilt_kernels.cli.experiment import run

    run(**options)
