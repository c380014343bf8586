"""`noisetilt bench`: speed of three operators on this machine."""

import click


@click.command()
@click.option(
    "--shape",
    default="16x64x64",
    show_default=True,
    metavar="CxHxW",
    help="Shape of the sample: channels, height, width.",
)
@click.option(
    "--device", default="cpu", show_default=True, help="Device to measure on, such as cpu or cuda:1."
)
def bench(shape: str, device: str) -> None:
    """Measure the speed of the operators on this machine.

    Prints a table with the median time of whiten, project_wgnc and compact_fourier on one sample of Gaussian
    noise, the time of the pure-PyTorch reference on the same device, and the ratio of the two.
    `python -m noisetilt_kernels.profile` measures every operator, for any shapes.
    """
    extents = [int(part) if part.isdecimal() else 0 for part in shape.split("x")]
    if len(extents) != 3 or 0 in extents:
        raise click.UsageError(f"--shape must be written as 16x64x64, got {shape!r}")
    from noisetilt_kernels.cli.bench import run

    run((extents[0], extents[1], extents[2]), device)
