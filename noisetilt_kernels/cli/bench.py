"""`noisetilt bench`: speed of three operators on this machine.

The folder `bench/` of the repository measures all operators.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import click
import torch
from torch import Tensor

from .. import python_ref
from ..backends import backends
from ..backends import reference as reference_backend
from ..config import Sample, preset
from .errors import explained
from .timing import median_seconds


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
    x = torch.randn(1, shape.channels, shape.height, shape.width, device=device)
    flat = x.flatten(1)
    config = preset("auto", x.shape)
    cases: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "whiten": (lambda: torch.ops.noisetilt.whiten(x), lambda: reference_backend.whiten(x, config)),
        "project_wgnc": (
            lambda: torch.ops.noisetilt.project_wgnc(flat),
            lambda: python_ref.project_wgnc(flat),
        ),
        "compact_fourier": (
            lambda: torch.ops.noisetilt.compact_fourier(flat),
            lambda: python_ref.compact_fourier(flat),
        ),
    }
    for operator, (kernel, definition) in cases.items():
        kernel()  # the first call also makes the tables
        yield Timing(operator, median_seconds(kernel, min_run_time), median_seconds(definition, min_run_time))


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
