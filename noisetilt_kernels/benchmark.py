"""How fast the operators are here: the table of `noisetilt bench`. The repository's `bench/` measures far more."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from . import python_ref
from .backends import backends
from .backends import reference as reference_backend
from .config import Sample, resolve_preset


class Timing(NamedTuple):
    """An operator's time, and its reference's on the same device."""

    operator: str
    seconds: float
    """Of the backend that serves; a median."""
    reference_seconds: float


def measure(shape: Sample, device: str, seconds: float = 1.0) -> Iterator[Timing]:
    """Time the operators on one sample of Gaussian noise, each for so many seconds, the reference likewise.

    Raises:
        ValueError: an operator does not take that shape.
    """
    x = torch.randn(1, shape.channels, shape.height, shape.width, device=device)
    flat = x.flatten(1)
    config = resolve_preset("auto", shape, 1e-4)
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
        kernel()  # what is made at the first call, such as tables
        yield Timing(operator, _median(kernel, seconds), _median(definition, seconds))


def table(shape: Sample, device: str, timings: list[Timing]) -> str:
    """The timings as text."""
    status = backends()[torch.device(device).type]
    lines = [
        f"{'x'.join(map(str, shape[:3]))} Gaussian noise, float32, {device}: {status.backend}, {status.detail}",
        f"{'operator':<18}{'ms':>10}{'reference, ms':>16}{'ratio':>9}",
    ]
    lines += [
        f"{name:<18}{1e3 * own:>10.3f}{1e3 * defined:>16.2f}{defined / own:>8.1f}x"
        for name, own, defined in timings
    ]
    return "\n".join(lines)


def _median(function: Callable[[], Tensor], seconds: float) -> float:
    # as many threads as torch has elsewhere: the timer would take one
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=seconds).median)
