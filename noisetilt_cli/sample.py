"""`noisetilt sample`: one run of a sampler on a flow model."""

from typing import Any

import click

from .options import single_run_options


@click.command()
@single_run_options("flow", default="ntrk")
def sample(**options: Any) -> None:
    """Steer a flow model toward a reward.

    Writes the images, their latents, a record of every step and a contact sheet to the folder.

    \b
    Examples:
      noisetilt sample --model digits --prompt "a handwritten seven" \\
          --reward brightness --rho 0.01 --particles 4 --out run/
      noisetilt sample --model digits --prompt "a handwritten seven" \\
          --reward brightness --method svdd:candidates=2 --out run-svdd/
    """
    from noisetilt_kernels.cli.single_run import run

    run("flow", **options)
