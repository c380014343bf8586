"""`noisetilt compare`: several methods with the same prompts and seeds."""

from pathlib import Path
from typing import Any

import click

from .options import (
    compute_options,
    dry_run_option,
    model_options,
    prompt_options,
    reward_options,
    seed_options,
)


@click.command()
@model_options
@prompt_options
@reward_options
@click.option(
    "--method",
    "method_texts",
    multiple=True,
    metavar="NAME[:OPTION=VALUE,...]",
    help="A method to compare, such as base, ntrk:rho=0.3,operator=w or svdd:candidates=4; may be repeated. "
    "Differences are to the first method, at the nearest NFE. `noisetilt sample --help` lists the options; "
    "best_of=N keeps the best of N images, in place of --best-of. Required without --resume.",
)
@click.option(
    "--seeds",
    "particles",
    type=click.IntRange(2),
    default=20,
    show_default=True,
    help="Number of images for each prompt in a row of the table; all methods use the same seeds.",
)
@click.option(
    "--best-of",
    default="1",
    show_default=True,
    metavar="N,...",
    help="Values of N for rows with the best of N images for each seed. The largest N multiplies the number "
    "of images to sample.",
)
@seed_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the comparison, with a subfolder for each method; created if necessary.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the comparison in the folder. Options that are not given are those of the comparison.",
)
@dry_run_option
@compute_options
def compare(particles: int, best_of: str, **options: Any) -> None:
    """Compare methods with the same prompts and seeds.

    Prints a table of mean rewards with 95 % confidence intervals and paired differences. Writes the table,
    plots and a contact sheet to the folder.

    \b
    Example:
      noisetilt compare --model digits --prompt "a handwritten seven" --reward brightness \\
          --held-out digit-judge --method ntrk:rho=0.01 --method base --out comparison/
    """
    counts = _parse_best_of(best_of)
    if not options["method_texts"] and not options["resume"]:
        raise click.UsageError("Missing option '--method': give --method once for each method")
    from noisetilt_kernels.cli.compare import run

    run(particles=particles, best_of=counts, **options)


def _parse_best_of(text: str) -> list[int]:
    """Return the numbers of --best-of.

    Raises:
        click.UsageError: a part is not a positive integer.
    """
    counts = []
    for part in text.split(","):
        if not part.strip().isdecimal() or not int(part):
            raise click.UsageError(f"--best-of must be positive integers with commas, got {part!r}")
        counts.append(int(part))
    return list(dict.fromkeys(counts))
