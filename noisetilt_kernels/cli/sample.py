"""`noisetilt sample`: one run of a sampler on a flow model."""

from typing import Any

import click

from ..sampling.methods import Method
from .errors import explained
from .method_options import method_options
from .options import compute_options, model_options, prompt_options, reward_options, run_options
from .single_run import run_method


@click.command()
@model_options
@prompt_options
@reward_options
@method_options("flow", default="ntrk")
@run_options
@compute_options
def sample(method: Method, **options: Any) -> None:
    """Steer a flow model toward a reward.

    Writes the images, their latents, a record of every step and a contact sheet to the folder.

    \b
    Examples:
      noisetilt sample --model digits --prompt "a handwritten seven" \\
          --reward brightness --rho 0.01 --particles 4 --out run/
      noisetilt sample --model digits --prompt "a handwritten seven" \\
          --reward brightness --method svdd:candidates=2 --out run-svdd/
    """
    with explained():
        run_method(method, **options)
