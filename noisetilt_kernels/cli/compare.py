"""`noisetilt compare`: several methods with the same prompts and seeds."""

from pathlib import Path
from typing import Any

import click

from ..sampling.methods import parse_method
from .errors import HOW_TO_RESUME, explained, on_interrupt
from .options import (
    compute_options,
    compute_options_of,
    model_options,
    prompt_options,
    reward_options,
    seed_options,
    settings_of,
)


@click.command()
@model_options
@prompt_options
@reward_options
@click.option(
    "--method",
    "methods",
    multiple=True,
    required=True,
    metavar="NAME[:OPTION=VALUE,...]",
    help="A method to compare, such as base, ntrk:rho=0.3,operator=w or svdd:candidates=4; may be repeated. "
    "Differences are to the first method. `noisetilt sample --help` lists the options.",
)
@click.option(
    "--seeds",
    type=click.IntRange(2),
    default=20,
    show_default=True,
    help="Number of images for each prompt and method; all methods use the same seeds.",
)
@click.option(
    "--best-of",
    default="1",
    show_default=True,
    metavar="N,...",
    help="Values of N for rows with the best of every N images. Each must divide the number of seeds.",
)
@seed_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the comparison, with a subfolder for each method; created if necessary.",
)
@click.option("--resume", is_flag=True, help="Continue the comparison in the folder.")
@compute_options
def compare(
    methods: tuple[str, ...],
    seeds: int,
    best_of: str,
    out: Path,
    resume: bool,
    device: str | None,
    micro_batch: int,
    offload: bool,
    frames_at_once: int,
    **settings_options: Any,
) -> None:
    """Compare methods with the same prompts and seeds.

    Prints a table of mean rewards with 95 % confidence intervals and paired differences. Writes the table,
    plots and a contact sheet to the folder.

    \b
    Example:
      noisetilt compare --model digits --prompt "a handwritten seven" --reward brightness \\
          --held-out digit-judge --method ntrk:rho=0.01 --method base --out comparison/
    """
    with explained():
        try:
            import matplotlib as _matplotlib  # noqa: F401
            import PIL as _pil  # noqa: F401
        except ImportError as error:
            raise click.ClickException(
                f'compare needs {error.name}: pip install "noisetilt-kernels[demo]"'
            ) from error
        from ..runs import comparison
        from ..runs.settings import check_device
        from ..runs.workers import connected

        parsed = [parse_method(text) for text in methods]
        counts = _parse_best_of(best_of, seeds)
        compute = compute_options_of(device, micro_batch, offload, frames_at_once)
        settings = settings_of(parsed[0], device=compute.device, particles=seeds, **settings_options)
        check_device(compute.device)
        with (
            connected(compute.device) as workers,
            on_interrupt(lambda: f"finished images are in {out}; {HOW_TO_RESUME}"),
        ):
            rows = comparison.compare(settings, parsed, compute, out, counts, resume=resume, workers=workers)
        if workers.is_first:
            click.echo(comparison.markdown(rows))
            click.echo(f"\ntable, plots and images: {out.resolve()}")


def _parse_best_of(text: str, seeds: int) -> list[int]:
    """Return the numbers of --best-of.

    Raises:
        click.UsageError: a part is not a positive integer, or does not divide the number of seeds.
    """
    counts = []
    for part in text.split(","):
        if not part.strip().isdecimal() or not int(part) or seeds % int(part):
            raise click.UsageError(f"--best-of must be numbers that divide the {seeds} seeds, got {part!r}")
        counts.append(int(part))
    return list(dict.fromkeys(counts))
