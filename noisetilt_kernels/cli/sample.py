"""`noisetilt sample`: one run of a sampler on a flow model."""

from typing import Any

import click

from ..runs.methods import FLOW_METHODS, Method
from ..sampling import OPERATORS, SCHEDULES
from .errors import explained
from .options import compute_options, model_options, prompt_options, reward_options, run_options
from .single_run import run_method


@click.command()
@model_options
@prompt_options
@reward_options
@click.option("--method", type=click.Choice(FLOW_METHODS), default="ntrk", show_default=True)
@click.option("--rho", type=float)
@click.option("--operator", type=click.Choice(OPERATORS))
@click.option("--strength", type=float)
@click.option("--candidates", type=click.IntRange(1))
@click.option("--steps", type=click.IntRange(1))
@click.option("--schedule", type=click.Choice(SCHEDULES))
@click.option("--scale", type=float)
@run_options
@compute_options
def sample(
    method: str,
    rho: Any,
    operator: Any,
    strength: Any,
    candidates: Any,
    steps: Any,
    schedule: Any,
    scale: Any,
    **options: Any,
) -> None:
    """Steer a flow model toward a reward.

    \b
    Example:
      noisetilt sample --model digits --prompt "a handwritten seven" \\
          --reward brightness --rho 0.01 --particles 4 --out run/
    """
    given = {
        "rho": rho,
        "operator": operator,
        "strength": strength,
        "candidates": candidates,
        "steps": steps,
        "schedule": schedule if scale is None else schedule or "linear",
        "scale": scale,
    }
    with explained():
        run_method(Method(method, {n: v for n, v in given.items() if v is not None}), **options)
