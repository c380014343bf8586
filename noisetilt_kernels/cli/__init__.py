"""The `noisetilt` command. What needs diffusers or matplotlib is imported when a subcommand is called."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ..runs.files import check_destination, write_whole
from . import errors
from .compare import compare
from .sample import optimize, sample


@click.group()
def main() -> None:
    """Whitening kernels for reward-guided diffusion sampling."""
    # transformers warns at its import of what is no concern here, such as a missing torchvision
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # of every attempt to reach the hub


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Tell what is installed and which backend serves each device.

    The last line is the verdict: what runs on the CPU, or how to get the compiled kernels.
    """
    import json

    from .. import doctor

    report = doctor.examine()
    click.echo(json.dumps(report, indent=2) if as_json else doctor.render(report))


@main.command()
@click.option("--shape", default="16x64x64", show_default=True, metavar="CxHxW", help="Of the sample.")
@click.option("--device", default="cpu", show_default=True, help="Such as cpu or cuda:1.")
def bench(shape: str, device: str) -> None:
    """Time the operators here, against the reference."""
    from ..config import Sample

    extents = [int(part) if part.isdecimal() else 0 for part in shape.split("x")]
    if len(extents) != 3 or 0 in extents:
        raise click.UsageError(f"--shape must be written as 16x64x64, got {shape!r}")
    with errors.explained():
        from .. import benchmark
        from ..runs.settings import check_device

        check_device(device)
        sample = Sample(extents[0], extents[1], extents[2])
        timings = list(benchmark.measure(sample, device))
    click.echo(benchmark.table(sample, device, timings))


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("noisetilt-demo.png"),
    show_default=True,
    help="The picture to write (PNG).",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Seed of the Gaussian noise.",
)
def demo(out: Path, seed: int) -> None:
    """Show what the operators do to noise, and what that does to steered images.

    First a photograph and true noise pass through norm projection, WGNC and W. A good operator removes the structure
    of the photograph, keeps its direction, and leaves the noise alone. Then a small model draws digits, steered toward
    more ink, with every sampler and every operator; a judge who takes no part says how many can still be read.
    """
    try:
        from .. import demo, demo_sampling
    except ImportError as error:
        raise click.ClickException(
            f'the demo needs what is not installed here ({error}): pip install "noisetilt-kernels[demo]"'
        ) from error

    with _writing(out):
        check_destination(out)
    comparison = demo.compare(seed)
    click.echo(demo.table(comparison))
    with _writing(out):
        write_whole(out, demo.png(demo.draw(comparison)))
    click.echo(f"\npicture: {out.resolve()}\n")
    with errors.explained(), errors.stopped(lambda: "the demo keeps nothing but its pictures"):
        text, pictures = demo_sampling.run(seed, out)
    click.echo(f"{text}\n\npictures: {', '.join(str(path.resolve()) for path in pictures)}")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns the failure to write a file into one sentence."""
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror or error}") from error


@main.command()
def rewards() -> None:
    """List the rewards."""
    from ..rewards.registry import ENTRIES

    for name, entry in ENTRIES.items():
        click.echo(f"{name:<14}{entry.description}" + (f"; {entry.source}" if entry.source else ""))
    click.echo(f"{'MODULE:NAME':<14}a function (images, prompts) -> (B,) of your own; or FILE.py:NAME")


for _command in (sample, optimize, compare):
    main.add_command(_command)
