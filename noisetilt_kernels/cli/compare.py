"""Work of `noisetilt compare`: several methods with the same prompts and seeds."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..runs.comparison_folder import Comparison, folder_name, read_comparison
from ..runs.early_checks import check_early, warnings_of
from ..runs.settings import ComputeOptions, Settings, check_device
from ..runs.workers import connected, is_reporting_process
from .errors import HOW_TO_RESUME, explained, is_given, on_interrupt, print_warnings
from .parsing import comparison_of, compute_options_of, run_before, settings_of


def run(
    *,
    method_texts: Sequence[str],
    best_of: Sequence[int],
    out: Path,
    resume: bool,
    dry_run: bool,
    device: str | None,
    micro_batch: int,
    offload: bool,
    frames_at_once: int,
    **options: Any,
) -> None:
    """Check the options, run every method, and print the table and warnings.

    Args:
        method_texts, best_of, out, resume, dry_run, device, micro_batch, offload, frames_at_once: values of
            options.
        options: values of all other options, see `settings_of`.
    """
    with explained():
        begun = read_comparison(out) if resume else None
        if begun is not None:
            method_texts = method_texts or begun.methods
            best_of = best_of if is_given("best_of") else begun.best_of
        if not method_texts:
            raise click.UsageError(f"Missing option '--method': {out} has no comparison to resume")
        comparison = comparison_of(method_texts, best_of)
        first = comparison.entries[0].method
        before = run_before(out / folder_name(first), resume)
        compute = compute_options_of(
            before, device=device, micro_batch=micro_batch, offload=offload, frames_at_once=frames_at_once
        )
        settings = settings_of(first, before, device=compute.device, **options)
        _run(replace(settings, rounds=1), comparison, compute, out, resume, dry_run)


def _run(
    settings: Settings,
    comparison: Comparison,
    compute: ComputeOptions,
    out: Path,
    resume: bool,
    dry_run: bool,
) -> None:
    try:
        import matplotlib as _matplotlib  # noqa: F401
        import PIL as _pil  # noqa: F401
    except ImportError as error:
        raise click.ClickException(
            f'compare needs {error.name}: pip install "noisetilt-kernels[demo]"'
        ) from error
    check_early(settings, compute)
    if not dry_run:  # a plan may be for another machine
        check_device(compute.device)

    # diffusers, transformers and matplotlib take seconds to import
    from ..runs import plan
    from ..runs.comparison import check, check_folders, compare, markdown
    from ..runs.comparison import warnings_of as warnings_of_rows

    runs = check(settings, comparison, compute)
    if is_reporting_process():
        check_folders(runs, out, resume)
    print_warnings(warnings_of(settings))
    if dry_run:
        if is_reporting_process():
            click.echo(plan.describe(settings, compute, out, runs.values()).text)
            click.echo(plan.row("time", "not measured, because a dry run loads no weights"))
        return
    with (
        connected(compute.device) as workers,
        on_interrupt(lambda: f"finished images are in {out}; {HOW_TO_RESUME}"),
    ):
        rows = compare(settings, comparison, compute, out, resume=resume, workers=workers)
    if workers.is_first:
        click.echo(markdown(rows))
        click.echo(f"\ntable, plots and images: {out.resolve()}")
        print_warnings(warnings_of_rows(settings, rows, out))
