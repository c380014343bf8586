"""One run into one folder: the work of `noisetilt sample` and `noisetilt optimize`."""

from pathlib import Path
from typing import Any

import click

from ..runs.early_checks import check_early, warnings_of
from ..runs.folder import Planned, check_folder, count_finished
from ..runs.settings import ComputeOptions, Settings, check_device
from ..runs.workers import connected, is_reporting_process
from ..sampling.registry import SAMPLERS
from .errors import HOW_TO_RESUME, explained, on_interrupt, print_warnings
from .parsing import compute_options_of, method_of, run_before, settings_of


def run(
    kind: str,
    *,
    method_text: str,
    out: Path,
    resume: bool,
    dry_run: bool,
    device: str | None,
    micro_batch: int,
    offload: bool,
    frames_at_once: int,
    **options: Any,
) -> None:
    """Check the options of a command, print the plan, carry out the run, and print the result.

    Options are checked before diffusers is imported, as far as they do not depend on a model's files.

    Args:
        kind: kind of the samplers, see `Sampler`.
        method_text, out, resume, dry_run, device, micro_batch, offload, frames_at_once: values of options.
        options: values of all other options.
    """
    names = dict.fromkeys(
        name for sampler in SAMPLERS.values() if sampler.kind == kind for name in sampler.parameters
    )
    shorthands = {name: options.pop(name) for name in names}
    with explained():
        before = run_before(out, resume)
        method = method_of(kind, method_text, shorthands, before)
        method.check()
        compute = compute_options_of(
            before,
            device=device,
            micro_batch=micro_batch,
            offload=offload,
            frames_at_once=frames_at_once,
        )
        settings = settings_of(method, before, device=compute.device, **options)
        _run(settings, compute, out, resume, dry_run)


def _run(settings: Settings, compute: ComputeOptions, out: Path, resume: bool, dry_run: bool) -> None:
    check_early(settings, compute)
    if not dry_run:  # a plan may be for another machine
        check_device(compute.device)
    if is_reporting_process():
        check_folder(out, settings.to_json(), resume)

    # diffusers and transformers take seconds to import
    from ..runs import loading, plan
    from ..runs.execute import execute, open_folder, out_of_memory_explained

    loading.check_settings(settings, compute)
    print_warnings(warnings_of(settings))
    if dry_run:
        if is_reporting_process():
            click.echo(plan.describe(settings, compute, out).text)
            click.echo(plan.row("time", "not measured, because a dry run loads no weights"))
        return
    with connected(compute.device) as workers:
        if workers.is_first:
            planned = plan.describe(settings, compute, out)
            click.echo(planned.text)
        with (
            on_interrupt(
                lambda: f"{count_finished(out)} of {settings.count} images are in {out}; {HOW_TO_RESUME}"
            ),
            open_folder(out, settings, compute, workers, resume) as folder,
        ):
            with out_of_memory_explained(compute):
                # rewards first: a missing reward is found sooner
                reward, held_out = loading.load_rewards(settings, compute)
                features = loading.load_all_features(settings, compute)
                model = loading.load_model(settings, compute)
                time = None
                if workers.count == 1:
                    left = settings.count - len(folder.outcomes)
                    time = plan.measure_time(settings, compute, model, reward, left) if left else None
                    short = plan.row("time", "not measured, because the run is short")
                    click.echo(time.text if time else short)
                if workers.is_first:
                    folder.write_plan(Planned(planned.memory, time and time.seconds))
            summary = execute(settings, compute, folder, model, reward, held_out, workers, features)
        if workers.is_first:
            click.echo(_summary_table(summary))
            click.echo(f"images, record and settings: {out.resolve()}")
            print_warnings(summary["warnings"])


def _summary_table(summary: dict[str, Any]) -> str:
    rewards = {"reward": summary["reward"], **summary["parts"], **summary["diversity"]}
    width = max(map(len, rewards)) + 2
    intervals = any(estimate["half_width"] is not None for estimate in rewards.values())
    lines = [f"{'':<{width}}{'mean':>12}{'  95 % interval' if intervals else ''}"]
    for name, estimate in rewards.items():
        mean = "none finite" if estimate["mean"] is None else f"{estimate['mean']:.5g}"
        interval = "" if estimate["half_width"] is None else f"  +- {estimate['half_width']:.3g}"
        lines.append(f"{name:<{width}}{mean:>12}{interval}")
    return "\n".join([*lines, f"best: {', '.join(f'{particle:04d}.png' for particle in summary['best'])}"])
