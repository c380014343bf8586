"""`noisetilt demo`: operators on a photograph and on noise, then samplers on a small model."""

from pathlib import Path

import click


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("noisetilt-demo.png"),
    show_default=True,
    help="Picture to write (PNG). Two more pictures are written beside it.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Seed of the Gaussian noise and of the samplers.",
)
def demo(out: Path, seed: int) -> None:
    """Show the effect of the operators on noise and on steered images.

    The first part applies norm projection, WGNC and W to a photograph and to Gaussian noise. A good operator
    removes the structure of the photograph, keeps its direction, and leaves the noise unchanged.

    The second part draws digits with a small bundled model, steered toward more ink by ntrk with four
    operators, dps and svdd, beside unguided ones. An independent classifier counts how many digits are still
    readable. The demo takes about a minute.
    """
    from noisetilt_kernels.cli.demo import run

    run(out, seed)
