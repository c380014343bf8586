"""The whitening operator W, DESIGN section 5."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...config import Tile
from .arithmetic import is_finite
from .fourier import compact_fourier
from .launch import LAUNCH_TABLE, Launch, ceil_div, planned
from .order_stats import TablesInTurn, project_in_turn
from .tile_stats import Statistics, TileProjection, project_statistics, rescale
from .transforms import butterfly


class Projection(NamedTuple):
    """Tables of project(x): those of the values, then those of every region of every tile size."""

    values: TablesInTurn
    tiles: tuple[TileProjection, ...]


def project(x: Tensor, projection: Projection) -> tuple[Tensor, Statistics | None]:
    """Apply 2OS to the values of samples (B, C, H, W) for each chunk size, then project tile statistics for
    each tile size, but for the last rescaling. It is part of the kernel that reads the result.
    """
    values = project_in_turn(x.flatten(1), projection.values)
    return project_statistics(values.view(x.shape), projection.tiles)


def project_mixing_domain(x: Tensor, projection: Projection, tile: Tile, repeats: int) -> Tensor:
    """Project samples after each of `repeats` butterfly steps on tiles, and invert the steps."""
    statistics = None
    for _ in range(repeats):
        x = butterfly(x, tile, 1, False, statistics)
        x, statistics = project(x, projection)
    return butterfly(x, tile, repeats, True, statistics)


def whiten(x: Tensor, projection: Projection, mixing: Sequence[tuple[Tile, int]]) -> Tensor:
    """Whiten contiguous samples (B, C, H, W), float32 or float64.

    mixing: mixing domains, each a tile size and a number of butterfly steps.
    """
    shape = x.shape
    x = rescale(*project(finite_or_nan(x), projection))
    x = compact_fourier(x.flatten(1), inverse=False).view(shape)
    x = rescale(*project(x, projection))
    x = compact_fourier(x.flatten(1), inverse=True).view(shape)
    for tile, repeats in mixing:
        x = project_mixing_domain(x, projection, tile, repeats)
    return x


@triton.jit
def find_non_finite_kernel(x_ptr, found_ptr, size, BLOCK: tl.constexpr):
    """Set `found` of a sample to 1 if the program's block of it contains NaN or infinity."""
    num_blocks = tl.cdiv(size, BLOCK)
    place = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    sample = (tl.program_id(0) // num_blocks).to(tl.int64)
    x = tl.load(x_ptr + sample * size + place, mask=place < size, other=0)
    found = tl.max(tl.where(is_finite(x), 0, 1), axis=0)
    tl.store(found_ptr + sample, 1, mask=found == 1)  # all programs that store, store the same value


@triton.jit
def finite_or_nan_kernel(x_ptr, found_ptr, out_ptr, size, BLOCK: tl.constexpr):
    """Copy a block of a sample, or fill it with NaN if `found` of the sample is 1."""
    num_blocks = tl.cdiv(size, BLOCK)
    place = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    sample = (tl.program_id(0) // num_blocks).to(tl.int64)
    found = tl.load(found_ptr + sample)
    x = tl.load(x_ptr + sample * size + place, mask=place < size)
    tl.store(out_ptr + sample * size + place, tl.where(found == 1, float("nan"), x), mask=place < size)


def finite_or_nan(x: Tensor) -> Tensor:
    """Copy samples (B, C, H, W). A sample with a non-finite value becomes NaN throughout."""
    find, copy = _plan(len(x), x[0].numel(), x.dtype)
    found = torch.zeros(len(x), dtype=torch.int32, device=x.device)
    out = torch.empty_like(x)
    find(x, found)
    copy(x, found, out)
    return out


@planned
def _plan(batch: int, size: int, dtype: torch.dtype) -> tuple[Launch, Launch]:
    """Return the two launches of `finite_or_nan`."""

    def launch(kernel: Any) -> Launch:
        block = LAUNCH_TABLE[kernel.fn.__name__]["values"]
        return Launch(kernel, batch * ceil_div(size, block), size, BLOCK=block)

    return launch(find_non_finite_kernel), launch(finite_or_nan_kernel)
