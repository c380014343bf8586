"""`noisetilt optimize`: one run of WGNC or another noise optimiser on a one-step model."""

from typing import Any

import click

from .options import single_run_options


@click.command()
@single_run_options("one-step", default="wgnc")
def optimize(**options: Any) -> None:
    """Optimise the noise of a one-step model toward a reward (WGNC, ReNO, PRNO or MPGR).

    Writes the images, the optimised noise, a record of every iteration and a contact sheet to the folder.

    \b
    Example:
      noisetilt optimize --model digits-turbo --prompt "a handwritten seven" \\
          --reward brightness --iterations 50 --lr 0.02 --out run/
    """
    from noisetilt_kernels.cli.single_run import run

    run("one-step", **options)
