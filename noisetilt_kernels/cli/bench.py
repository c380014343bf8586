"""`noisetilt bench`: speed of three operators on this machine.

`python -m noisetilt_kernels.profile` measures all operators for any shape. The folder `bench/` of the
repository compares them with other implementations.
"""

from collections.abc import Iterator
from typing import NamedTuple

import click
import torch

from ..backends import backends, reference
from ..config import Sample
from ..profile.cases import cases_for
from ..profile.inputs import batch_of
from ..profile.timing import time_call
from ..registration import served_by
from .errors import explained

OPERATORS = ("whiten", "project_wgnc", "compact_fourier")


def run(extents: tuple[int, int, int], device: str) -> None:
    """Measure one sample of shape (C, H, W) on a device and print the table."""
    sample = Sample(*extents)
    with explained():
        from ..runs.settings import check_device

        check_device(device)
        click.echo(heading(sample, device))
        for timing in measure(sample, device):
            click.echo(line(timing))


class Timing(NamedTuple):
    """Median times of an operator.

    Attributes:
        operator: name of the operator.
        seconds: time on the backend that serves the device.
        reference_seconds: time of the reference on the same device.
    """

    operator: str
    seconds: float
    reference_seconds: float


def measure(shape: Sample, device: str, min_run_time: float = 1.0) -> Iterator[Timing]:
    """Time three operators and their references on one sample of Gaussian noise.

    Args:
        shape: shape of the sample.
        device: device of the sample.
        min_run_time: seconds to measure each function for.

    Raises:
        ValueError: an operator does not take samples of this shape.
    """
    x = batch_of("noise", shape, 1).to(device)
    cases = {case.name: case for case in cases_for(x)}
    for operator in OPERATORS:
        call = cases[operator].call
        seconds = time_call(call, min_run_time).median
        with served_by(reference):
            yield Timing(operator, seconds, time_call(call, min_run_time).median)


def heading(shape: Sample, device: str) -> str:
    """Return the lines above the table."""
    status = backends()[torch.device(device).type]
    size = "x".join(map(str, shape[:3]))
    return (
        f"{size} Gaussian noise, float32, {device}: {status.backend}, {status.detail}\n"
        f"{'operator':<18}{'ms':>10}{'reference, ms':>16}{'ratio':>9}"
    )


def line(timing: Timing) -> str:
    """Return a line of the table."""
    name, seconds, reference = timing
    return f"{name:<18}{1e3 * seconds:>10.3f}{1e3 * reference:>16.2f}{reference / seconds:>8.1f}x"
