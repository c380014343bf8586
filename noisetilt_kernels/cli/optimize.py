"""`noisetilt optimize`: one run of WGNC on a one-step model."""

from typing import Any

import click

from ..runs.methods import Method
from ..sampling import OPERATORS
from .errors import explained
from .options import compute_options, model_options, prompt_options, reward_options, run_options
from .single_run import run_method


@click.command()
@model_options
@prompt_options
@reward_options
@click.option("--iterations", type=click.IntRange(1))
@click.option("--lr", type=float)
@click.option("--clip", type=float)
@click.option("--operator", type=click.Choice(OPERATORS))
@run_options
@compute_options
def optimize(iterations: Any, lr: Any, clip: Any, operator: Any, **options: Any) -> None:
    """Optimise the noise of a one-step model toward a reward (WGNC).

    \b
    Example:
      noisetilt optimize --model digits-turbo --prompt "a handwritten seven" \\
          --reward brightness --iterations 50 --lr 0.02 --out run/
    """
    given = {"iterations": iterations, "lr": lr, "clip": clip, "operator": operator}
    with explained():
        run_method(Method("wgnc", {n: v for n, v in given.items() if v is not None}), **options)
