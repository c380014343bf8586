"""`noisetilt sample` and `noisetilt optimize`: one run into one folder."""

from pathlib import Path
from typing import Any

import click

from ..rewards import check_prompts
from ..sampling import OPERATORS, SAMPLERS
from ..sampling.methods import Method
from .errors import GO_ON, explained, stopped
from .options import (
    flow_options,
    machine_of,
    machine_options,
    model_options,
    prompt_options,
    reward_options,
    run_options,
    settings_of,
)


@click.command()
@model_options
@prompt_options
@reward_options
@click.option(
    "--method",
    type=click.Choice([name for name, sampler in SAMPLERS.items() if sampler.kind == "flow"]),
    default="ntrk",
    show_default=True,
    help="The sampler; with several --particles the best one of each prompt is marked (best of n).",
)
@flow_options
@run_options
@machine_options
def sample(
    method: str,
    rho: float | None,
    operator: str | None,
    strength: float | None,
    candidates: int | None,
    steps: int | None,
    schedule: str | None,
    scale: float | None,
    **others: Any,
) -> None:
    """Steer a flow model toward a reward.

    \b
    noisetilt sample --model digits --prompt "a handwritten seven" \\
        --reward brightness --rho 0.01 --particles 4 --out run/
    """
    options = {
        "rho": rho,
        "operator": operator,
        "strength": strength,
        "candidates": candidates,
        "steps": steps,
        "schedule": schedule if scale is None else schedule or "linear",
        "scale": scale,
    }
    _run(method, options, **others)


@click.command()
@model_options
@prompt_options
@reward_options
@click.option("--iterations", type=click.IntRange(1), help="Of the optimiser.  [default: 200]")
@click.option("--lr", type=float, help="Learning rate of Adam.  [default: 0.02]")
@click.option("--clip", type=float, help="Upper limit of the norm of what Adam is given.  [default: 0.03]")
@click.option("--operator", type=click.Choice(OPERATORS), help="The projection.  [default: wgnc]")
@run_options
@machine_options
def optimize(
    iterations: int | None, lr: float | None, clip: float | None, operator: str | None, **others: Any
) -> None:
    """Optimise the noise of a one-step model toward a reward (WGNC).

    \b
    noisetilt optimize --model digits-turbo --prompt "a handwritten seven" \\
        --reward brightness --iterations 50 --lr 0.02 --out run/
    """
    _run("wgnc", {"iterations": iterations, "lr": lr, "clip": clip, "operator": operator}, **others)


def _run(
    method: str,
    options: dict[str, Any],
    *,
    out: Path,
    resume: bool,
    dry_run: bool,
    device: str | None,
    micro_batch: int,
    offload: bool,
    frames_at_once: int,
    **described: Any,
) -> None:
    with explained():
        from ..runs import loading, plan
        from ..runs.execute import execute, memory_explained, open_folder
        from ..runs.settings import check_device
        from ..runs.workers import joined, speaks

        machine = machine_of(device, micro_batch, offload, frames_at_once)
        chosen = Method(method, {name: value for name, value in options.items() if value is not None})
        chosen.check()
        settings = settings_of(chosen, device=machine.device, **described)
        check_prompts([*settings.rewards, *settings.held_out], settings.prompts)
        loading.check(settings, machine)
        if dry_run:
            if speaks():
                click.echo(plan.describe(settings, machine, out))
            return
        check_device(machine.device)
        with joined(machine.device) as workers:
            if workers.first:
                click.echo(plan.describe(settings, machine, out))
            folder = open_folder(out, settings, machine, workers, resume)
            count = len(settings.every_prompt)
            with stopped(lambda: f"{folder.count()} of {count} images are in {out}; {GO_ON}"):
                with memory_explained(machine):
                    reward, held_out = loading.load_rewards(settings, machine)  # first, as it fails sooner
                    model = loading.load_model(settings, machine)
                summary = execute(settings, machine, folder, model, reward, held_out, workers)
            if workers.first:
                click.echo(_told(summary))
                click.echo(f"images, record and settings: {out.resolve()}")


def _told(summary: dict[str, Any]) -> str:
    values = {"reward": summary["reward"], **summary["parts"]}
    width = max(map(len, values)) + 2
    lines = [f"{'':<{width}}{'mean':>12}  95 % interval"]
    for name, value in values.items():
        mean = "none finite" if value["mean"] is None else f"{value['mean']:.5g}"
        interval = "" if value["half_width"] is None else f"  +- {value['half_width']:.3g}"
        lines.append(f"{name:<{width}}{mean:>12}{interval}")
    return "\n".join([*lines, f"best: {', '.join(f'{particle:04d}.png' for particle in summary['best'])}"])
