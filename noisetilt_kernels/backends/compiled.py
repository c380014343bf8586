"""Parts that the compiled CPU and CUDA backends share: calls of the C++ and CUDA kernels through PyTorch's
dispatcher.

Operations that differ between the devices are in `cpu` and `cuda`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix
from .._ops import ops as _ops
from ..config import Tile, WhiteningConfig, flatten_mixing
from .tables import Extents, Projections, Table, TileTables, fft_factors

_REAL_OF = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def has_kernels_for(device_type: str) -> bool:
    """Return True if the loaded libraries have kernels for the device type."""
    operator = add_op_namespace_prefix("_project_")
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator, device_type.upper())


def refused_size(op: str, extents: Extents, most: int) -> str | None:
    """Return the reason why a sample has too many values for kernels that serve up to `most`, or None."""
    values = (2 if op == "project_wgnc_blocks" else 1) * extents.sample_size
    return (
        f"samples of {values} values are too large: its kernels serve up to {most}" if values > most else None
    )


# ---- operations ----


def compact_fourier(x: Tensor, inverse: bool) -> Tensor:
    return _ops._compact_fourier.default(readable_as_complex(x), _factors_for(x), inverse)


def butterfly(x: Tensor, tile: Tile, steps: int, inverse: bool) -> Tensor:
    return _ops._butterfly.default(x, tile, steps, inverse)


def hadamard_transform(x: Tensor, scale: float) -> Tensor:
    rows, size = x.shape
    padded = 1 << (size - 1).bit_length()
    if padded == size:
        return _ops._hadamard_transform.default(x, scale)
    result = x.new_zeros(rows, padded)
    result[:, :size] = x
    return _ops._hadamard_transform.default(result, scale)[:, :size].contiguous()


def project_wgnc(x: Tensor, block_size: int) -> Tensor:
    return _ops._project_wgnc.default(readable_as_complex(x), _factors_for(x), block_size)


def project_wgnc_blocks(y: Tensor, block_size: int) -> Tensor:
    return _ops._project_wgnc_blocks.default(y.view(_REAL_OF[y.dtype]), block_size).view(y.dtype)


def _factors_for(x: Tensor) -> Tensor:
    return fft_factors(x.shape[1], x.dtype, x.device)


def readable_as_complex(x: Tensor) -> Tensor:
    """Return x, or a copy if it is on a GPU and its address is no multiple of a complex number's size."""
    return x.clone() if x.device.type != "cpu" and x.data_ptr() % (2 * x.element_size()) else x


# ---- operations with the tables of a device ----


class Projection(NamedTuple):
    """Tables of project(x) for samples of one shape and dtype on one device."""

    handle: Tensor
    """Stands for the tables in arguments of the operators, which then need not take them apart."""
    tensors: list[Tensor]
    """Tensors that the handle keeps and the kernels read."""


def project_tile_stats(
    x: Tensor,
    tile: Tile,
    chunk_sizes: tuple[int, ...],
    alpha: float,
    projections: Projections[Projection],
) -> Tensor:
    result = copy_of(x)
    _ops._project_.default(result, projections(x, (), chunk_sizes, (tile,), alpha).handle)
    return result


def whiten(x: Tensor, config: WhiteningConfig, projections: Projections[Projection]) -> Tensor:
    projection = projections(x, config.chunk_sizes, config.chunk_sizes, config.tile_sizes, config.alpha)
    return _ops._whiten.default(x, projection.handle, flatten_mixing(config))


def copy_of(x: Tensor) -> Tensor:
    """Return a copy of contiguous samples."""
    return _ops._copy.default(x) if x.device.type == "cpu" else x.clone()


# ---- tables of the projection kernels ----


def make_projection(
    samples: Tensor,
    values: list[Table],
    tiles: list[TileTables],
    tensors_of: Callable[[Table], tuple[Tensor, ...]],
) -> Projection:
    """Return the tables of project(x), in the order in which the kernels use them.

    Args:
        samples: an empty batch with the shape, dtype and device of the samples.
        values: tables of the values.
        tiles: tables of the tile statistics.
        tensors_of: returns the tensors that the device's kernels need of a table.
    """
    of_tiles = [table for _, regions in tiles for _, pairs in regions for pair in pairs for table in pair]
    tables = [*values, *of_tiles]
    tensors = [tensor for table in tables for tensor in tensors_of(table)]
    sizes = [n for tile, regions in tiles for n in (*tile, *(len(pairs) for _, pairs in regions))]
    monotone = [table.monotone for table in tables]
    factors = None  # only `whiten` projects values, and needs the FFT
    if values:
        factors = fft_factors(samples.shape[1:].numel(), samples.dtype, samples.device)
    handle = _ops._projection.default(samples, tensors, monotone, len(values), sizes, factors)
    return Projection(handle, tensors if factors is None else [*tensors, factors])
