"""Tile statistics, DESIGN section 3: measure every tile, project the statistics with 2OS, rescale the tiles.

One pass over the values rescales the tiles of one size and measures the tiles of the next size.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...config import Tile
from ...python_ref import Region
from ...python_ref.tile_stats import CONSTANT_ENERGY, CONSTANT_RATIO
from .arithmetic import div_rn, is_finite, pairs, rounded, sqrt_rn, unpaired
from .launch import LAUNCH_TABLE, Launch, ceil_div, planned, power_of_two
from .order_stats import TablesInTurn, project_in_turn

_HUGE = 2**31 - 2**15  # leaves room for the padding of the last program


class TileProjection(NamedTuple):
    """Tables of the tiles of a region, of two fields: mean and energy."""

    region: Region
    tables: TablesInTurn


class Statistics(NamedTuple):
    """Means (B, P) of all tiles; sqrt(K) * mean and energy (B, 2, P) before and after projection."""

    tile: Tile
    means: Tensor
    measured: Tensor
    projected: Tensor


@triton.jit
def tree_sum(terms, SIZE: tl.constexpr):
    """Replace every group of SIZE terms by its sum, in the order of DESIGN section 9.

    Each sum is repeated SIZE times. For a tensor of the sums alone, Triton would keep all terms in every
    thread.
    """
    LOG_SIZE: tl.constexpr = SIZE.bit_length() - 1
    for step in tl.static_range(LOG_SIZE):
        first, second = pairs(terms, SIZE >> (step + 1))
        total = first + second
        terms = unpaired(total, total, SIZE >> (step + 1))
    return terms


@triton.jit
def tile_stats_kernel(
    x_ptr,
    out_ptr,
    old_means_ptr,
    old_measured_ptr,
    old_projected_ptr,
    means_ptr,
    measured_ptr,
    num_tiles,
    channels,
    height,
    width,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    TILES: tl.constexpr,
    RESCALE: tl.constexpr,
    MEASURE: tl.constexpr,
    ROOT: tl.constexpr,
    HUGE: tl.constexpr,
    OLD_HEIGHT: tl.constexpr,
    OLD_WIDTH: tl.constexpr,
    OLD_ROOT: tl.constexpr,
    RATIO: tl.constexpr,
    ENERGY: tl.constexpr,
):
    """Rescale tiles of OLD_HEIGHT x OLD_WIDTH to their projected statistics (if RESCALE), then measure tiles
    of HEIGHT x WIDTH (if MEASURE).

    A program measures TILES tiles, each padded to SIZE values, a power of two. ROOT: square root of a tile's
    size. HUGE: the number of a tile in the batch may need more than 32 bits.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    COUNT: tl.constexpr = HEIGHT * WIDTH
    i = tl.arange(0, TILES * SIZE)
    program = tl.program_id(0)
    if HUGE:
        program = program.to(tl.int64)
    tile, k = program * TILES + i // SIZE, i % SIZE
    present = (tile < num_tiles) & (k < COUNT)
    tiles_across = width // WIDTH
    in_plane = tiles_across * (height // HEIGHT)
    plane = tile // in_plane
    y = tile % in_plane // tiles_across * HEIGHT + k // WIDTH
    x = tile % tiles_across * WIDTH + k % WIDTH
    place = plane.to(tl.int64) * (height * width) + y * width + x
    value = tl.load(x_ptr + place, mask=present, other=0)

    if RESCALE:
        value = rescaled(
            value, present, plane, y, x, old_means_ptr, old_measured_ptr, old_projected_ptr, channels, height,
            width, OLD_HEIGHT, OLD_WIDTH, OLD_ROOT, RATIO, ENERGY,
        )  # fmt: skip
        tl.store(out_ptr + place, value, mask=present)

    if MEASURE:  # padding is 0, also after rescaling, because its statistics are 0
        mean = div_rn(tree_sum(value, SIZE), rounded(COUNT, dtype))
        centred = tl.where(k < COUNT, value - mean, 0)
        energy = tree_sum(centred * centred, SIZE)

        in_sample = channels * in_plane
        # place in the first of the sample's two fields
        field = tile.to(tl.int64) + tile // in_sample * in_sample.to(tl.int64)
        is_first = present & (k == 0)
        tl.store(means_ptr + tile, mean, mask=is_first)
        tl.store(measured_ptr + field, rounded(ROOT, dtype) * mean, mask=is_first)
        tl.store(measured_ptr + field + in_sample, energy, mask=is_first)


@triton.jit
def rescaled(
    value, present, plane, row, column, means_ptr, measured_ptr, projected_ptr, channels, height, width,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, ROOT: tl.constexpr, RATIO: tl.constexpr, ENERGY: tl.constexpr,
):  # fmt: skip
    """Rescale values to the projected statistics of their tiles of HEIGHT x WIDTH.

    plane, row, column: places of the values in planes of height x width, `channels` for each sample.
    """
    dtype: tl.constexpr = value.dtype
    COUNT: tl.constexpr = HEIGHT * WIDTH
    EVEN: tl.constexpr = COUNT - COUNT % 2
    across = width // WIDTH
    in_plane = across * (height // HEIGHT)
    in_sample = channels * in_plane
    tile = plane % channels * in_plane + row // HEIGHT * across + column // WIDTH
    k = row % HEIGHT * WIDTH + column % WIDTH
    begin = (plane // channels).to(tl.int64) * in_sample
    mean_at, energy_at = 2 * begin + tile, 2 * begin + in_sample + tile
    mean = tl.load(means_ptr + begin + tile, mask=present, other=0)
    m = tl.load(measured_ptr + mean_at, mask=present, other=0)
    e = tl.load(measured_ptr + energy_at, mask=present, other=0)
    new_m = tl.load(projected_ptr + mean_at, mask=present, other=0)
    new_e = tl.load(projected_ptr + energy_at, mask=present, other=0)

    offset = rounded(RATIO, dtype) * mean
    constant = (e <= rounded(COUNT, dtype) * (offset * offset)) | (e < rounded(ENERGY, dtype))
    alternating = tl.where(k < EVEN, 1 - k % 2 * 2, 0).to(dtype)
    direction = tl.where(constant, alternating, value - mean)
    scale = sqrt_rn(div_rn(new_e, tl.where(constant, rounded(EVEN, dtype), e)))
    result = div_rn(new_m, rounded(ROOT, dtype)) + scale * direction
    result = tl.where((new_m == m) & (new_e == e), value, result)
    return tl.where(is_finite(e), result, float("nan"))


def project_tile_stats(x: Tensor, projections: Sequence[TileProjection]) -> Tensor:
    """Project mean and energy of the tiles of samples (B, C, H, W), one region after the other.

    Tiles have at most MOST_TILE_VALUES values (see `backends.triton`).
    """
    return rescale(*project_statistics(x, projections))


def project_statistics(x: Tensor, projections: Sequence[TileProjection]) -> tuple[Tensor, Statistics | None]:
    """Do `project_tile_stats`, but for the last rescaling. Return the samples, and the statistics to which
    they still have to be rescaled, if any.

    A region of the plane is copied, and projected as the plane of separate samples.
    """
    statistics, given = None, x
    for region, tables in projections:
        if region.fills(x):
            x, statistics = _measure(x, statistics, region.tile)
            projected = project_in_turn(statistics.measured.flatten(0, 1), tables)
            statistics = statistics._replace(projected=projected)
        else:
            x, statistics = rescale(x, statistics), None
            x = x.clone() if x is given else x
            part = region.of(x)
            part.copy_(project_tile_stats(part.contiguous(), [TileProjection(region.own(), tables)]))
    return x, statistics


def rescale(x: Tensor, statistics: Statistics | None) -> Tensor:
    """Rescale tiles to their projected statistics, if there are any."""
    if statistics is None:
        return x
    tile, *old = statistics
    out = torch.empty_like(x)
    _plan(x.shape, x.dtype, tile, None)(x, out, *old, x, x)
    return out


def _measure(x: Tensor, statistics: Statistics | None, tile: Tile) -> tuple[Tensor, Statistics]:
    """Rescale tiles to their projected statistics, if there are any, and measure tiles of the given size."""
    batch, size = len(x), x[0].numel()
    num_tiles = size // (tile[0] * tile[1])
    out = x if statistics is None else torch.empty_like(x)
    means, measured = x.new_empty(batch, num_tiles), x.new_empty(batch, 2, num_tiles)
    old_tile, *old = statistics or (None, x, x, x)
    _plan(x.shape, x.dtype, old_tile, tile)(x, out, *old, means, measured)
    return out, Statistics(tile, means, measured, measured)


def rescaling_constants(tile: Tile, dtype: torch.dtype) -> dict[str, Any]:
    """Return the constants of a kernel that may call `rescaled` for tiles of this size."""
    return {
        "OLD_HEIGHT": tile[0],
        "OLD_WIDTH": tile[1],
        "OLD_ROOT": math.sqrt(tile[0] * tile[1]),
        "RATIO": CONSTANT_RATIO[dtype],
        "ENERGY": CONSTANT_ENERGY[dtype],
    }


@planned
def _plan(shape: tuple[int, ...], dtype: torch.dtype, old_tile: Tile | None, tile: Tile | None) -> Launch:
    """Return the launch for samples of `shape`: rescale tiles of the old size, measure the new size."""
    _, channels, height, width = shape
    th, tw = tile or (1, width)  # if nothing is measured, the shape is arbitrary
    num_tiles = math.prod(shape) // (th * tw)
    size = power_of_two(th * tw)
    tiles_at_once = max(1, LAUNCH_TABLE["tile_stats_kernel"]["values"] // size)
    return Launch(
        tile_stats_kernel,
        ceil_div(num_tiles, tiles_at_once),
        num_tiles,
        channels,
        height,
        width,
        HEIGHT=th,
        WIDTH=tw,
        SIZE=size,
        TILES=tiles_at_once,
        RESCALE=old_tile is not None,
        MEASURE=tile is not None,
        ROOT=math.sqrt(th * tw),
        HUGE=math.prod(shape) >= _HUGE,
        **rescaling_constants(old_tile or tile or (1, 1), dtype),
    )
