"""Costs of a device, measured, and what limits a call by its counts."""

from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import compiled
from ..registration import served_by
from .cases import Case
from .counting import count_launches
from .timing import time_call

LEAST_SHARE = 0.5
"""Smallest share of a call's time that makes launches or memory its limit."""

RULE = (
    f"limit: launches, if starts are at least {LEAST_SHARE:.0%}; else memory, if copy is at least "
    f"{LEAST_SHARE:.0%}; else compute. starts: share of the median that the launches take alone, by the time "
    "of a call with 2 values, and of a PyTorch operator on 1 value for each further launch. copy: share of "
    "the median that a copy of the bytes takes alone"
)
"""Text on how the limit of a call is decided."""


class Costs(NamedTuple):
    """Measured costs on a device.

    Attributes:
        copied_bytes: bytes that a copy of the samples reads and writes.
        copy: seconds of that copy.
        operator: seconds of a PyTorch operator on one value.
        calls: seconds and launches of a call with two values, by name of the backend.
    """

    copied_bytes: int
    copy: float
    operator: float
    calls: Mapping[str, tuple[float, int]]

    @property
    def bandwidth(self) -> float:
        """Bytes that the copy reads and writes in a second."""
        return self.copied_bytes / self.copy

    def shares(self, backend: str, seconds: float, launches: int, moved: int) -> dict[str, float]:
        """Return the shares of a call's time that its launches and a copy of its bytes would take alone."""
        call, included = self.calls[backend]
        starts = call + max(0, launches - included) * self.operator
        return {"launches": starts / seconds, "memory": moved / self.bandwidth / seconds}


def time_copy(x: Tensor, seconds: float) -> float:
    """Return the seconds that a copy of a tensor takes."""
    # of the kernels, if there are some: PyTorch's threads wait for one another
    copy = compiled.copy_of if compiled.has_kernels_for(x.device.type) else torch.clone
    return time_call(lambda: copy(x), seconds).median


def measure_costs(x: Tensor, backends: list[ModuleType], seconds: float) -> Costs:
    """Measure the costs for samples x.

    Args:
        x: samples.
        backends: modules of `noisetilt_kernels.backends`.
        seconds: duration of each measurement.
    """
    one = torch.zeros(1, device=x.device)
    small = Case("hadamard_transform", "", (torch.zeros(1, 2, device=x.device),))
    calls = {}
    for backend in backends:
        with served_by(backend):
            calls[backend.NAME] = time_call(small.call, seconds).median, count_launches(small).number
    return Costs(
        copied_bytes=2 * x.nbytes,
        copy=time_copy(x, seconds),
        operator=time_call(lambda: one.add_(1), seconds).median,
        calls=calls,
    )


def limit_of(shares: Mapping[str, float]) -> str:
    """Return what limits a call: "launches", "memory" or "compute". See `RULE`."""
    return next((name for name, share in shares.items() if share >= LEAST_SHARE), "compute")
