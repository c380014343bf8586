"""`noisetilt compare`: methods side by side."""

from pathlib import Path
from typing import Any

import click

from ..rewards import check_prompts
from ..sampling.methods import parse_method
from .errors import GO_ON, explained, stopped
from .options import (
    machine_of,
    machine_options,
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
    help="A method such as base, ntrk:rho=0.3,operator=w or svdd:candidates=4; differences are to the first.",
)
@click.option(
    "--seeds",
    type=click.IntRange(2),
    default=20,
    show_default=True,
    help="Images of each prompt and method; the same seeds for all methods.",
)
@click.option(
    "--best-of",
    default="1",
    show_default=True,
    metavar="N,...",
    help="Choose the best of every N as well; N must divide the number of seeds.",
)
@seed_options
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder; each method has its own in it."
)
@click.option("--resume", is_flag=True, help="Go on with the comparison in the folder.")
@machine_options
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
    **described: Any,
) -> None:
    """Compare methods with the same prompts and seeds: table, plots, contact sheet.

    \b
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
        from ..runs.workers import joined

        chosen = [parse_method(text) for text in methods]
        counts = _counts(best_of, seeds)
        machine = machine_of(device, micro_batch, offload, frames_at_once)
        settings = settings_of(chosen[0], device=machine.device, particles=seeds, **described)
        check_prompts([*settings.rewards, *settings.held_out], settings.prompts)
        check_device(machine.device)
        with joined(machine.device) as workers, stopped(lambda: f"what was finished is in {out}; {GO_ON}"):
            rows = comparison.compare(settings, chosen, machine, out, counts, resume=resume, workers=workers)
        if workers.first:
            click.echo(comparison.markdown(rows))
            click.echo(f"\ntable, plots and images: {out.resolve()}")


def _counts(text: str, seeds: int) -> list[int]:
    """The numbers of --best-of.

    Raises:
        click.UsageError: one is no number, or does not divide the number of seeds.
    """
    counts = []
    for part in text.split(","):
        if not part.strip().isdecimal() or not int(part) or seeds % int(part):
            raise click.UsageError(f"--best-of must be numbers that divide the {seeds} seeds, got {part!r}")
        counts.append(int(part))
    return list(dict.fromkeys(counts))
