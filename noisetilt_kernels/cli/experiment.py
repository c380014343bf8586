"""Work of `noisetilt experiment`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..rewards.spec import check_sources
from ..runs.errors import RunFolderError
from ..runs.settings import check_device
from ..runs.workers import connected, is_reporting_process
from .errors import HOW_TO_RESUME, explained, of_option, on_interrupt, print_warnings
from .parsing import compute_options_of, parse_source


def run(
    *,
    name: str | None,
    list_names: bool,
    only: Sequence[str],
    prompts: int | None,
    model: str | None,
    dtype: str | None,
    quantize: str | None,
    reward_decoder: str | None,
    non_finite: str,
    sources: Sequence[str],
    out: Path | None,
    resume: bool,
    only_report: bool,
    dry_run: bool,
    **compute_values: Any,
) -> None:
    """Check the options, run the experiment, and print its tables.

    Arguments: values of the options.
    """
    with explained():
        try:
            import jinja2 as _jinja2  # noqa: F401
            import matplotlib as _matplotlib  # noqa: F401
            import PIL as _pil  # noqa: F401

            from ..experiments.spec import bundled_experiments, read_experiment
        except ImportError as error:
            raise click.ClickException(
                f'experiment needs {error.name}: pip install "noisetilt-kernels[demo]"'
            ) from error

        if list_names:
            for bundled in bundled_experiments():
                click.echo(f"{bundled:<24}{read_experiment(bundled).title}")
            return
        if name is None:
            raise click.UsageError("Missing argument 'NAME'; `noisetilt experiment --list` lists the names")
        if out is None and not dry_run:
            raise click.UsageError("Missing option '--out'")
        compute = compute_options_of(None, **compute_values)
        source_of = dict(map(parse_source, sources))
        with of_option("--reward-source"):
            check_sources(source_of)
        experiment = read_experiment(
            name,
            device=compute.device,
            model=model,
            prompts=prompts,
            sources=source_of,
            dtype=dtype,
            quantize=quantize,
            reward_decoder=reward_decoder,
            non_finite=non_finite,
        ).only(only)
        folder = out or Path(experiment.name)  # a plan needs none

        # diffusers and transformers take seconds to import
        from ..experiments.report import REPORT, markdown, read_tables, warnings_of, write_report
        from ..experiments.run import check_experiment, run_experiment
        from ..runs import plan

        if only_report:
            if not folder.is_dir():
                raise RunFolderError(f"{folder} does not exist, so it holds no experiment to report")
            tables = read_tables(experiment, folder)
            if not any(table.finished for table in tables):
                raise RunFolderError(f"{folder} has no finished images of the experiment {experiment.name}")
            write_report(experiment, tables, folder)
            click.echo(markdown(experiment, tables))
            return
        if (folder / REPORT).exists() and not resume and not dry_run:
            raise RunFolderError(
                f"{folder} already has a {REPORT}; continue it with --resume, or choose another folder"
            )
        if not dry_run:  # a plan may be for another machine
            check_device(compute.device)
        if is_reporting_process():
            runs = check_experiment(experiment, compute, out, resume)
            for one, own in zip(experiment.comparisons, runs, strict=True) if dry_run else ():
                click.echo(one.title or one.name)
                click.echo(plan.describe(one.settings, compute, folder / one.name, own).text)
        if dry_run:
            return
        with (
            connected(compute.device) as workers,
            on_interrupt(lambda: f"finished images are in {folder}; {HOW_TO_RESUME}"),
        ):
            tables = run_experiment(experiment, compute, folder, resume=resume, workers=workers)
        if workers.is_first:
            click.echo(markdown(experiment, tables))
            click.echo(f"report: {(folder / 'report.html').resolve()}")
            print_warnings(warnings_of(tables))
