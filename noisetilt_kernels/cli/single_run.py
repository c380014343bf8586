"""One run into one folder: the common part of `noisetilt sample` and `noisetilt optimize`."""

from pathlib import Path
from typing import Any

import click

from ..sampling.methods import Method
from .errors import HOW_TO_RESUME, on_interrupt
from .options import compute_options_of, settings_of


def run_method(
    method: Method,
    *,
    out: Path,
    resume: bool,
    dry_run: bool,
    device: str | None,
    micro_batch: int,
    offload: bool,
    frames_at_once: int,
    **settings_options: Any,
) -> None:
    """Check the options of a command, print the plan, carry out the run, and print the result.

    Args:
        method: the sampler and its arguments.
        out, resume, dry_run: options of `run_options`.
        device, micro_batch, offload, frames_at_once: options of `compute_options`.
        settings_options: all other options, see `settings_of`.
    """
    from ..runs import loading, plan
    from ..runs.execute import execute, open_folder, out_of_memory_explained
    from ..runs.folder import check_folder, count_finished
    from ..runs.settings import check_device
    from ..runs.workers import connected, is_reporting_process

    compute = compute_options_of(device, micro_batch, offload, frames_at_once)
    method.check()
    settings = settings_of(method, device=compute.device, **settings_options)
    loading.check_settings(settings, compute)
    if dry_run:
        if is_reporting_process():
            click.echo(plan.describe(settings, compute, out))
        check_folder(out, settings.to_json(), resume)
        return
    check_device(compute.device)
    with connected(compute.device) as workers:
        if workers.is_first:
            click.echo(plan.describe(settings, compute, out))
        with (
            on_interrupt(
                lambda: f"{count_finished(out)} of {settings.count} images are in {out}; {HOW_TO_RESUME}"
            ),
            open_folder(out, settings, compute, workers, resume) as folder,
        ):
            with out_of_memory_explained(compute):
                # rewards first: a missing reward is found sooner
                reward, held_out = loading.load_rewards(settings, compute)
                model = loading.load_model(settings, compute)
            summary = execute(settings, compute, folder, model, reward, held_out, workers)
        if workers.is_first:
            click.echo(_summary_table(summary))
            click.echo(f"images, record and settings: {out.resolve()}")


def _summary_table(summary: dict[str, Any]) -> str:
    rewards = {"reward": summary["reward"], **summary["parts"]}
    width = max(map(len, rewards)) + 2
    lines = [f"{'':<{width}}{'mean':>12}  95 % interval"]
    for name, estimate in rewards.items():
        mean = "none finite" if estimate["mean"] is None else f"{estimate['mean']:.5g}"
        interval = "" if estimate["half_width"] is None else f"  +- {estimate['half_width']:.3g}"
        lines.append(f"{name:<{width}}{mean:>12}{interval}")
    return "\n".join([*lines, f"best: {', '.join(f'{particle:04d}.png' for particle in summary['best'])}"])
