"""`noisetilt optimize`: one run of WGNC on a one-step model."""

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
@method_options("one-step", default="wgnc")
@run_options
@compute_options
def optimize(method: Method, **options: Any) -> None:
    """Optimise the noise of a one-step model toward a reward (WGNC).

    Writes the images, the optimised noise, a record of every iteration and a contact sheet to the folder.

    \b
    Example:
      noisetilt optimize --model digits-turbo --prompt "a handwritten seven" \\
          --reward brightness --iterations 50 --lr 0.02 --out run/
    """
    with explained():
        run_method(method, **options)
