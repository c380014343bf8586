"""The whitening operator W, DESIGN section 5."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...config import Tile
from .arithmetic import is_finite
from .launch import LAUNCH_TABLE, Launch, ceil_div, planned
from .order_stats import Bounds, project_2os
from .tile_stats import TileProjection, project_tile_stats
from .transforms import butterfly, compact_fourier


class Projection(NamedTuple):
    """What project(x) projects onto: bounds of the values for every chunk size, then tile statistics."""

    values: tuple[Bounds, ...]
    tiles: tuple[TileProjection, ...]


def project(x: Tensor, projection: Projection) -> Tensor:
    """2OS on the values of samples (B, C, H, W) for each chunk size, then tile statistics for each tile size."""
    values = x.flatten(1)
    for bounds in projection.values:
        values = project_2os(values, bounds)
    return project_tile_stats(values.view(x.shape), projection.tiles)


def whiten(x: Tensor, projection: Projection, mixing: Sequence[tuple[Tile, int]]) -> Tensor:
    """W of samples (B, C, H, W), float32 or float64, contiguous; mixing: domains, each a tile and a number of steps."""
    x = project(finite_or_nan(x), projection)
    x = compact_fourier(x.flatten(1), inverse=False).view(x.shape)
    x = project(x, projection)
    x = compact_fourier(x.flatten(1), inverse=True).view(x.shape)
    for tile, repeats in mixing:
        for _ in range(repeats):
            x = project(butterfly(x, tile, 1, inverse=False), projection)
        x = butterfly(x, tile, repeats, inverse=True)
    return x


@triton.jit
def find_non_finite_kernel(x_ptr, found_ptr, size, BLOCK: tl.constexpr):
    """Notes for a sample if there is a NaN or an infinity in a block of it."""
    num_blocks = tl.cdiv(size, BLOCK)
    place = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    sample = (tl.program_id(0) // num_blocks).to(tl.int64)
    x = tl.load(x_ptr + sample * size + place, mask=place < size, other=0)
    found = tl.max(tl.where(is_finite(x), 0, 1), axis=0)
    tl.store(found_ptr + sample, 1, mask=found == 1)  # whoever stores, stores the same


@triton.jit
def finite_or_nan_kernel(x_ptr, found_ptr, out_ptr, size, BLOCK: tl.constexpr):
    """Copies a block of a sample; or NaN, if anything was found in the sample."""
    num_blocks = tl.cdiv(size, BLOCK)
    place = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    sample = (tl.program_id(0) // num_blocks).to(tl.int64)
    found = tl.load(found_ptr + sample)
    x = tl.load(x_ptr + sample * size + place, mask=place < size)
    tl.store(out_ptr + sample * size + place, tl.where(found == 1, float("nan"), x), mask=place < size)


def finite_or_nan(x: Tensor) -> Tensor:
    """A copy of samples (B, C, H, W); one with a non-finite value is NaN throughout."""
    find, copy = _plan(len(x), x[0].numel(), x.dtype)
    found = torch.zeros(len(x), dtype=torch.int32, device=x.device)
    out = torch.empty_like(x)
    find(x, found)
    copy(x, found, out)
    return out


@planned
def _plan(batch: int, size: int, dtype: torch.dtype) -> tuple[Launch, Launch]:
    """The launches of `finite_or_nan`."""

    def launch(kernel: Any) -> Launch:
        block = LAUNCH_TABLE[kernel.fn.__name__]["values"]
        return Launch(kernel, batch * ceil_div(size, block), size, BLOCK=block)

    return launch(find_non_finite_kernel), launch(finite_or_nan_kernel)
