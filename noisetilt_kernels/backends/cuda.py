"""The compiled CUDA kernels as a backend.

All work is enqueued on the current stream. The host waits for the device only at the first call with a table
or a configuration.

A call can be captured in a CUDA graph after one ordinary call with the same arguments: operator, shape with
the batch, layout, dtype, device and configuration. That call makes what a capture must not make: tables on
the device and plans of FFTs. It also loads the kernels, which CUDA does at their first launch. Which of them
serve other calls too is in docs/cuda.md.
"""

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
from .tables import ExaminedTables, Extents, Projections, Table, TileTables, raise_for_faults

NAME = "cuda"

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

SERVES_HALF = ("hadamard_transform",)
"""Operators whose kernels read and write float16 and bfloat16. They compute in float32 and round once."""

MOST_SAMPLE_VALUES = 2**30
"""Largest number of values in a sample: sums of places in it are 32-bit numbers (csrc/cuda_ops.cpp)."""


def refusal(op: str, device: torch.device, extents: Extents) -> str | None:
    """Return the reason why the CUDA kernels cannot serve the operator on the device, or None if they can."""
    if device.type != "cuda":
        return f"its kernels are for CUDA devices, not for {device.type}"
    if library.cuda_failure is not None:
        return library.cuda_failure
    if not has_kernels_for("cuda"):
        return "this build has no CUDA kernels"
    return _unserved_gpu() or compiled.refused_size(op, extents, MOST_SAMPLE_VALUES)


def describe() -> str:
    """Describe the backend in one line."""
    return f"CUDA kernels for compute capability {library.cuda_build_info()['architectures']}"


def project_2os(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    result = x.clone()
    _ops._project_2os_.default(result, lower, upper, _rank_ranges_of(lower, upper))
    return result


def project_tile_stats(x: Tensor, tile: Tile, chunk_sizes: tuple[int, ...], alpha: float) -> Tensor:
    return compiled.project_tile_stats(x, tile, chunk_sizes, alpha, _projections)


def whiten(x: Tensor, config: WhiteningConfig) -> Tensor:
    return compiled.whiten(x, config, _projections)


def _make_projection(samples: Tensor, values: list[Table], tiles: list[TileTables]) -> Projection:
    def tensors_of(table: Table) -> tuple[Tensor, ...]:
        rank_ranges, _ = _ops._rank_ranges.default(table.lower, table.upper)
        return table.lower, table.upper, rank_ranges

    return make_projection(samples, values, tiles, tensors_of)


_projections = Projections(_make_projection)


# ---- tables passed by the user ----


def _examine(lower: Tensor, upper: Tensor) -> Tensor:
    """Return the rank ranges of a table. Raise ValueError if it contains NaN or crossed bounds."""
    rank_ranges, faults = _ops._rank_ranges.default(lower, upper)
    nan, crossed, _ = faults.tolist()
    raise_for_faults(nan, crossed)
    return rank_ranges


_examined = ExaminedTables(_examine)


def _rank_ranges_of(lower: Tensor, upper: Tensor) -> Tensor:
    """Return the rank ranges of a user's table. Raise ValueError if it contains NaN or crossed bounds.

    The host waits for the device once per table, and again after a table has been changed in place. The host
    cannot wait while a graph is captured. Then the rank ranges are computed in the graph, at each replay, and
    the table is not checked.
    """
    if torch.cuda.is_current_stream_capturing():
        return _ops._rank_ranges.default(lower, upper)[0]
    return _examined(lower, upper)


# ---- supported GPUs ----


def _unserved_gpu() -> str | None:
    """Return the reason why the kernels do not run on one of the GPUs here, or None if they run on all."""
    built = library.cuda_build_info()["architectures"]
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not any(_runs_on(arch, capability) for arch in built.split()):
            return (
                f"the CUDA library is built for compute capability {built}, "
                f"{torch.cuda.get_device_name(index)} has {capability[0]}.{capability[1]}; "
                "set TORCH_CUDA_ARCH_LIST to it and install again"
            )
    return None


def _runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Return True if code for `arch` runs on the GPU: binary code within its major version, PTX on every GPU
    of its capability or a higher one. PTX of 12.0 therefore does not run on 11.0.
    """
    major, minor = map(int, arch.removesuffix("+PTX").split("."))
    return (major, minor) <= capability and (major == capability[0] or arch.endswith("+PTX"))
