"""`python -m noisetilt_kernels.profile SHAPE...`: time of every operator for the user's own shapes."""

import json
import sys
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import torch

from ..backends import available
from ..cli.doctor import cpu_model
from ..cli.errors import explained
from ..runs.settings import check_device, default_dtype
from ..versions import versions
from .inputs import INPUTS
from .report import Profile, profile, render, to_json
from .shapes import Shape, parse_shape
from .step import ModelStep, StepTime, bound_of_step, count_step, step_of_user

DTYPES = ("float32", "float64", "bfloat16", "float16")
BACKENDS = ("cpu", "cuda", "triton", "reference")


@click.command()
@click.argument("shapes", nargs=-1, metavar="SHAPE...")
@click.option(
    "--model",
    metavar="NAME|FOLDER|ID",
    help="Model of which a guided step is counted, to give each operator's share: flux for the transformer "
    "of FLUX.1 at 1024 pixels, a bundled model, a folder in diffusers format, or a hub id. SHAPE is then "
    "that of its latents.",
)
@click.option(
    "--step-ms",
    type=click.FloatRange(0, min_open=True),
    metavar="MS",
    help="Time that you have measured for a step of your model, in place of --model's counts.",
)
@click.option("--device", help="Device such as cpu or cuda:1.  [default: cuda if available, else cpu]")
@click.option(
    "--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Dtype of the samples."
)
@click.option(
    "--backend",
    "names",
    multiple=True,
    type=click.Choice(BACKENDS),
    help="Backend to measure; may be repeated.  [default: all that serve the device]",
)
@click.option(
    "--input",
    "field",
    type=click.Choice(INPUTS),
    default=INPUTS[0],
    show_default=True,
    help="Values of the samples: a field with amplitude spectrum 1/k, like a gradient, or Gaussian noise.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="File for all numbers in JSON.",
)
def main(
    shapes: tuple[str, ...],
    model: str | None,
    step_ms: float | None,
    device: str | None,
    dtype: str,
    names: tuple[str, ...],
    field: str,
    json_file: Path | None,
) -> None:
    """Measure every operator, and the parts of whiten, for your shapes.

    A SHAPE is that of a tensor: 4096 (N), 2x4096 (B, N), 16x64x64 (C, H, W), 2x16x128x128 (B, C, H, W), one
    video 1x16x21x90x160 (B, C, F, H, W), or the name of a preset, flux or wan.

    Prints for each backend of the device the median and the interquartile range, and what limits the call.
    """
    with explained():
        wanted = [parse_shape(text) for text in shapes]
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_device(device)
        place = torch.device(device)
        backends = choose_backends(place, names)
        counted = None if model is None else count_step(model, getattr(torch, default_dtype(device)))
        if counted is not None:
            wanted = wanted or [counted.shape]
            check_latents(wanted, counted)
        if not wanted:
            raise click.UsageError("SHAPE is missing; write one such as 16x64x64, or name a --model")
        if json_file is not None and not json_file.parent.is_dir():
            raise click.UsageError(f"--json: there is no folder {str(json_file.parent)!r}; create it first")
        processor = torch.cuda.get_device_name(place) if place.type == "cuda" else cpu_model()
        threads = torch.get_num_threads()
        noun = "threads" if threads > 1 else "thread"
        click.echo(f"{place}: {processor}; {threads} {noun}; torch {torch.__version__}\n")
        results = []
        for shape in wanted:
            with torch.cuda.device(place) if place.type == "cuda" else nullcontext():
                found = profile(
                    shape,
                    place,
                    getattr(torch, dtype),
                    backends,
                    field=field,
                    step=step_for(shape, counted, step_ms, place),
                    progress=show_progress,
                )
            show_progress("")
            click.echo(f"{render(found)}\n")
            results.append(found)
        if json_file is not None:
            json_file.write_text(f"{json.dumps(document(results, place), indent=1)}\n", encoding="utf-8")


def show_progress(text: str) -> None:
    """Replace the line of progress on a terminal."""
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{text}", nl=False, err=True)


def choose_backends(device: torch.device, names: Collection[str]) -> list[ModuleType]:
    """Return the backends of these names, or all that serve the device if there are none.

    Raises:
        ValueError: a backend does not serve the device.
    """
    serving = {backend.NAME: backend for backend in available(device)}
    for name in names:
        if name not in serving:
            raise ValueError(
                f"--backend {name} does not serve {device}; backends that do: {', '.join(serving)} "
                "(`noisetilt doctor` gives the reasons)"
            )
    return [backend for name, backend in serving.items() if not names or name in names]


def check_latents(shapes: Sequence[Shape], step: ModelStep) -> None:
    """Raise ValueError unless the samples of all shapes are latents of the model."""
    for shape in shapes:
        if shape.sample != step.shape.sample:
            raise ValueError(
                f"--model {step.model} has latents {step.shape.text}, got SHAPE {shape.text}; "
                "leave SHAPE out, or give --step-ms in place of --model"
            )


def step_for(
    shape: Shape, counted: ModelStep | None, step_ms: float | None, device: torch.device
) -> StepTime | None:
    """Return the time of a step: the user's, else a bound by counts, else None."""
    if step_ms is not None:
        return step_of_user(step_ms)
    if counted is None:
        return None
    return bound_of_step(counted, shape.batch, getattr(torch, default_dtype(str(device))), device)


def document(results: Sequence[Profile], device: torch.device) -> dict[str, Any]:
    """Return profiles as one JSON object, with the versions and the processor."""
    return {
        "versions": versions(),
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "profiles": [to_json(result) for result in results],
    }


if __name__ == "__main__":
    main(prog_name="python -m noisetilt_kernels.profile")
