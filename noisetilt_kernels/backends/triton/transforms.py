"""Orthogonal transforms (DESIGN section 4): butterfly mixing and Walsh-Hadamard."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...config import Tile
from ...python_ref import mixing_regions
from .arithmetic import pairs, rounded, unpaired
from .launch import LAUNCH_TABLE, Launch, ceil_div, planned, power_of_two
from .tile_stats import Statistics, rescale, rescaled, rescaling_constants

SQRT_HALF = tl.constexpr(math.sqrt(0.5))


def butterfly(
    x: Tensor, tile: Tile, steps: int, inverse: bool, statistics: Statistics | None = None
) -> Tensor:
    """Apply `steps` butterfly steps, or their inverse, to every tile of samples x (B, C, H, W). Returns (B,
    C, H, W).

    A region of tiles of one size is copied, if it is not the plane, and transformed as the plane of
    separate samples.

    statistics: those to which the samples are rescaled before, if any.
    """
    regions = mixing_regions((x.shape[2], x.shape[3]), tile)
    if regions[0].fills(x):
        return _take_steps(x, regions[0].tile, steps, inverse, None, statistics)
    x = rescale(x, statistics)
    result = x.clone()
    for region in regions:
        part = region.of(x).contiguous()
        region.of(result).copy_(_take_steps(part, region.tile, steps, inverse, None))
    return result


def hadamard_transform(x: Tensor, scale: float) -> Tensor:
    """Walsh-Hadamard transform of rows (R, N), zero-padded to a power of two and cut to N again, times
    `scale`.
    """
    rows, size = x.shape
    padded = power_of_two(size)
    if padded == 1:
        return x * scale
    if padded > size:
        x = torch.nn.functional.pad(x, (0, padded - size))
    # After n steps on 2^n values, every value is back in its place.
    result = _take_steps(x.view(rows, 1, 1, padded), (1, padded), padded.bit_length() - 1, False, scale)
    return result.view(rows, padded)[:, :size].contiguous()


def _take_steps(
    x: Tensor,
    tile: Tile,
    steps: int,
    inverse: bool,
    scale: float | None,
    statistics: Statistics | None = None,
) -> Tensor:
    """Apply butterfly steps. With a `scale`, add and subtract only, and multiply the result by it."""
    if steps == 0:
        return x.clone()
    # Text as cache key: unlike numbers, it distinguishes -0 from 0.
    text = None if scale is None else float(scale).hex()
    stats_tile, *stats = statistics or (None, x, x, x)
    for launch_steps in _plan(x.shape, x.dtype, tile, steps, inverse, text, stats_tile):
        x, before = torch.empty_like(x), x
        launch_steps(before, x, *stats)
    return x


@planned
def _plan(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    tile: Tile,
    steps: int,
    inverse: bool,
    scale: str | None,
    stats_tile: Tile | None,
) -> list[Launch]:
    """Return as few launches as possible, with evenly distributed steps."""
    num_values, size = math.prod(shape), tile[0] * tile[1]
    values = LAUNCH_TABLE["butterfly_kernel"]["values"]
    # Each result of g steps depends on 2^g values. 2^g must divide a tile's size and fit into a block.
    most_steps = min(size & -size, values).bit_length() - 1
    num_launches = ceil_div(steps, most_steps)
    lengths = [
        2 ** (steps * (k + 1) // num_launches - steps * k // num_launches) for k in range(num_launches)
    ]
    scales = [1.0] * (num_launches - 1) + [1.0 if scale is None else float.fromhex(scale)]
    return [
        Launch(
            butterfly_kernel,
            ceil_div(num_values, values),
            launch_scale,
            num_values // length,
            SIZE=size,
            LENGTH=length,
            VALUES=values,
            TILE_WIDTH=tile[1],
            TILES_ACROSS=shape[3] // tile[1],
            INVERSE=inverse,
            ORTHONORMAL=scale is None,
            RESCALE=stats_tile is not None and number == 0,
            CHANNELS=shape[1],
            HEIGHT=shape[2],
            **rescaling_constants(stats_tile or (1, 1), dtype),
        )
        for number, (length, launch_scale) in enumerate(zip(lengths, scales, strict=True))
    ]


@triton.jit
def butterfly_kernel(
    x,
    out,
    means_ptr,
    measured_ptr,
    projected_ptr,
    scale: tl.float64,
    num_sequences,
    SIZE: tl.constexpr,
    LENGTH: tl.constexpr,
    VALUES: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    TILES_ACROSS: tl.constexpr,
    INVERSE: tl.constexpr,
    ORTHONORMAL: tl.constexpr,
    RESCALE: tl.constexpr,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    OLD_HEIGHT: tl.constexpr,
    OLD_WIDTH: tl.constexpr,
    OLD_ROOT: tl.constexpr,
    RATIO: tl.constexpr,
    ENERGY: tl.constexpr,
):
    """Apply log2(LENGTH) butterfly steps, or their inverse, to all tiles of SIZE values.

    The steps mix each sequence of LENGTH consecutive values of a tile and spread it over the tile: value k of
    sequence q moves to place k * SIZE / LENGTH + q. A program takes VALUES / LENGTH consecutive sequences,
    possibly from several tiles. RESCALE: rescale the tiles of the statistics before.
    """
    STEPS: tl.constexpr = LENGTH.bit_length() - 1
    SEQUENCES: tl.constexpr = VALUES // LENGTH
    PER_TILE: tl.constexpr = SIZE // LENGTH
    # ROWS: number of adjacent sequences when spread. UNIT: number of sequences all present or all absent.
    ROWS: tl.constexpr = PER_TILE if SEQUENCES % PER_TILE == 0 else SEQUENCES
    UNIT: tl.constexpr = _common_power_of_two(PER_TILE, SEQUENCES)

    place = tl.arange(0, VALUES)
    first = tl.program_id(0).to(tl.int64) * SEQUENCES
    units_left = tl.minimum(num_sequences - first, SEQUENCES).to(tl.int32) // UNIT

    sequence = place // LENGTH
    together = _offsets(
        first, sequence, place % LENGTH, LENGTH, False, SIZE, LENGTH, TILE_WIDTH, TILES_ACROSS
    )
    is_together = sequence // UNIT < units_left
    if PER_TILE == 1:
        spread, is_spread = together, is_together
    else:
        sequence = place // (LENGTH * ROWS) * ROWS + place % ROWS
        spread = _offsets(
            first, sequence, place // ROWS % LENGTH, UNIT, True, SIZE, LENGTH, TILE_WIDTH, TILES_ACROSS
        )
        is_spread = tl.max_constancy(sequence // UNIT, UNIT) < units_left

    source, is_there = (spread, is_spread) if INVERSE else (together, is_together)
    values = tl.load(x + source, mask=is_there)
    if RESCALE:
        WIDTH: tl.constexpr = TILE_WIDTH * TILES_ACROSS
        in_plane = (source % (HEIGHT * WIDTH)).to(tl.int32)
        values = rescaled(
            values, is_there, source // (HEIGHT * WIDTH), in_plane // WIDTH, in_plane % WIDTH, means_ptr,
            measured_ptr, projected_ptr, CHANNELS, HEIGHT, WIDTH, OLD_HEIGHT, OLD_WIDTH, OLD_ROOT, RATIO,
            ENERGY,
        )  # fmt: skip
    if INVERSE:
        values = tl.reshape(values, [SEQUENCES // ROWS, LENGTH, ROWS])
        values = tl.reshape(tl.permute(values, (0, 2, 1)), [VALUES])
    for step in tl.static_range(STEPS):
        values = _step(values, 2 ** (STEPS - 1 - step if INVERSE else step), ORTHONORMAL)
    if not ORTHONORMAL:
        values = values * tl.full([1], scale, values.dtype)
    if INVERSE:
        tl.store(out + together, values, mask=is_together)
    else:
        values = tl.reshape(values, [SEQUENCES // ROWS, ROWS, LENGTH])
        values = tl.reshape(tl.permute(values, (0, 2, 1)), [VALUES])
        tl.store(out + spread, values, mask=is_spread)


@triton.jit
def _step(values, DISTANCE: tl.constexpr, ORTHONORMAL: tl.constexpr):
    """Replace values DISTANCE apart by their sums and differences."""
    a, b = pairs(values, DISTANCE)
    total, difference = a + b, a - b
    if ORTHONORMAL:
        c = rounded(SQRT_HALF, values.dtype)
        total, difference = total * c, difference * c
    return unpaired(total, difference, DISTANCE)


@triton.jit
def _offsets(
    first,
    sequence,
    k,
    RUN: tl.constexpr,
    SPREAD: tl.constexpr,
    SIZE: tl.constexpr,
    LENGTH: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    TILES_ACROSS: tl.constexpr,
):
    """Offset in the samples of value k of the sequence `first + sequence`, before the steps or after them
    (SPREAD).

    RUN consecutive offsets are adjacent in a tile, and start at a multiple of RUN.
    """
    if TILES_ACROSS == 1 and not SPREAD:  # tiles are contiguous, and so are the sequences
        return first * LENGTH + (sequence * LENGTH + k)
    PER_TILE: tl.constexpr = SIZE // LENGTH
    # Only the start of a program needs 64 bits, unless tiles are huge.
    INDEX: tl.constexpr = tl.int64 if SIZE * TILES_ACROSS >= 2**29 else tl.int32
    sequence, k = (first % PER_TILE).to(INDEX) + sequence, k.to(INDEX)
    tile = sequence // PER_TILE
    sequence = sequence % PER_TILE
    index = k * PER_TILE + sequence if SPREAD else sequence * LENGTH + k
    first = first // PER_TILE
    if TILES_ACROSS == 1:
        offsets = first * SIZE + (tile * SIZE + index)
    else:
        tile = (first % TILES_ACROSS).to(INDEX) + tile
        start = tile // TILES_ACROSS * (TILES_ACROSS * SIZE) + tile % TILES_ACROSS * TILE_WIDTH
        row = index // TILE_WIDTH * (TILES_ACROSS * TILE_WIDTH)
        offsets = first // TILES_ACROSS * (TILES_ACROSS * SIZE) + (start + row + index % TILE_WIDTH)
    # The compiler does not deduce that offsets are adjacent. The hints work only where they are computed.
    TOGETHER: tl.constexpr = RUN if TILES_ACROSS == 1 else _common_power_of_two(RUN, TILE_WIDTH)
    return tl.max_contiguous(tl.multiple_of(offsets, TOGETHER), TOGETHER)


@triton.constexpr_function
def _common_power_of_two(a, b):
    """Largest power of two that divides both."""
    return (a | b) & -(a | b)
