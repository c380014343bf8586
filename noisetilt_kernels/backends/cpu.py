"""The compiled C++ kernels as a backend for the CPU."""

from collections.abc import Callable

import torch
from torch import Tensor

from .._ops import ops as _ops
from ..config import Tile, WhiteningConfig
from . import compiled, library
from .compiled import (
    Projection,
    butterfly,
    compact_fourier,
    hadamard_transform,
    has_kernels_for,
    make_projection,
    project_wgnc,
    project_wgnc_blocks,
)
from .tables import Extents, Projections, Table, TileTables

NAME = "cpu"

__all__ = [
    "butterfly",
    "compact_fourier",
    "hadamard_transform",
    "project_2os",
    "project_tile_stats",
    "project_wgnc",
    "project_wgnc_blocks",
    "whiten",
]

MOST_SAMPLE_VALUES = 2**31
"""Largest number of values in a sample: places in it are 32-bit numbers (csrc/ops.cpp)."""
LEAST_FOR_OPENMP = 2**13
"""Fewest values of a call for which PyTorch uses OpenMP."""
MOST_WITHOUT_OPENMP = 2**18
"""Most values of a sample whose FFT takes less than a millisecond on one thread."""


def suits_one_thread(values: int, sample_size: int) -> bool:
    """Return True if PyTorch would use OpenMP for this many values, but the samples do not need it."""
    return values >= LEAST_FOR_OPENMP and sample_size <= MOST_WITHOUT_OPENMP


def without_openmp(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `call` with PyTorch's own operations on the calling thread: FFTs, copies, conversions.

    A region of OpenMP takes 10 to 100 ms while other processes hold the cores, because its threads wait for
    one another. The kernels use threads that do not (csrc/cpu/parallel.cpp).
    """

    def wrapped(x: Tensor, *tensors: Tensor) -> Tensor:
        left = _ops._leave_openmp.default()
        try:
            return call(x, *tensors)
        finally:
            if left:
                _ops._return_to_openmp.default()

    return wrapped


def refusal(op: str, device: torch.device, extents: Extents) -> str | None:
    """Return the reason why the C++ kernels cannot serve the operator on the device, or None if they can."""
    if device.type != "cpu":
        return f"its kernels are for the CPU, not for {device.type}"
    if library.failure is None and not has_kernels_for("cpu"):
        return "this build has no CPU kernels"
    return library.failure or compiled.refused_size(op, extents, MOST_SAMPLE_VALUES)


def describe() -> str:
    """Describe the backend in one line."""
    return f"C++ kernels, {library.build_info()['variant']} variant"


def project_2os(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    result = compiled.copy_of(x)
    _ops._project_2os_.default(result, lower, upper)
    return result


def project_tile_stats(x: Tensor, tile: Tile, chunk_sizes: tuple[int, ...], alpha: float) -> Tensor:
    return compiled.project_tile_stats(x, tile, chunk_sizes, alpha, _projections)


def whiten(x: Tensor, config: WhiteningConfig) -> Tensor:
    return compiled.whiten(x, config, _projections)


def _make_projection(samples: Tensor, values: list[Table], tiles: list[TileTables]) -> Projection:
    return make_projection(samples, values, tiles, lambda table: (table.lower, table.upper))


_projections = Projections(_make_projection)
