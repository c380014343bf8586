"""Orthogonal domains: butterfly mixing, Walsh-Hadamard, and compact Fourier around torch's FFT (DESIGN section 4)."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..config import Tile
from .arithmetic import pairs, rounded, unpaired
from .launch import LAUNCH_TABLE, launch, power_of_two

SQRT_HALF = tl.constexpr(math.sqrt(0.5))
SQRT_TWO = tl.constexpr(math.sqrt(2.0))


def butterfly(x: Tensor, tile: Tile, steps: int, inverse: bool) -> Tensor:
    """`steps` butterfly steps on every tile of samples x (B, C, H, W), or their inverse. Returns (B, C, H, W)."""
    return _take_steps(x, tile, steps, inverse, None)


def hadamard_transform(x: Tensor, scale: float) -> Tensor:
    """Walsh-Hadamard transform of rows (R, N), zero-padded to a power of two and cut to N again, times `scale`."""
    rows, size = x.shape
    padded = power_of_two(size)
    if padded == 1:
        return x * scale
    if padded > size:
        x = torch.nn.functional.pad(x, (0, padded - size))
    # n steps on 2^n values bring every value back to its place.
    result = _take_steps(x.view(rows, 1, 1, padded), (1, padded), padded.bit_length() - 1, False, scale)
    return result.view(rows, padded)[:, :size].contiguous()


def _take_steps(x: Tensor, tile: Tile, steps: int, inverse: bool, scale: float | None) -> Tensor:
    """Butterfly steps in as few launches as possible; with a `scale`, sums and differences that only it multiplies."""
    size, plane_width = tile[0] * tile[1], x.shape[3]
    values = LAUNCH_TABLE["butterfly_kernel"]["values"]
    # 2^g values take part in each result of g steps: they must divide a tile, and have place in a block.
    most_steps = min(size & -size, values).bit_length() - 1
    if steps == 0 or x.numel() == 0:
        return x.clone()
    num_launches = -(-steps // most_steps)
    for k in range(num_launches):
        length = 2 ** (steps * (k + 1) // num_launches - steps * k // num_launches)
        result = torch.empty_like(x)
        launch(
            butterfly_kernel,
            -(-x.numel() // values),
            x,
            result,
            1.0 if scale is None or k + 1 < num_launches else scale,
            x.numel() // length,
            SIZE=size,
            LENGTH=length,
            VALUES=values,
            TILE_WIDTH=tile[1],
            TILES_ACROSS=plane_width // tile[1],
            INVERSE=inverse,
            ORTHONORMAL=scale is None,
        )
        x = result
    return x


@triton.jit
def butterfly_kernel(
    x,
    out,
    scale: tl.float64,
    num_sequences,
    SIZE: tl.constexpr,
    LENGTH: tl.constexpr,
    VALUES: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    TILES_ACROSS: tl.constexpr,
    INVERSE: tl.constexpr,
    ORTHONORMAL: tl.constexpr,
):
    """log2 LENGTH butterfly steps on all tiles of SIZE values, or their inverse.

    The steps mix each sequence of LENGTH consecutive values of a tile, and spread it over the tile: value k of sequence
    q comes to place k * SIZE / LENGTH + q. A program takes VALUES / LENGTH consecutive sequences, which may be those of
    several tiles.
    """
    STEPS: tl.constexpr = LENGTH.bit_length() - 1
    SEQUENCES: tl.constexpr = VALUES // LENGTH
    PER_TILE: tl.constexpr = SIZE // LENGTH
    # So many sequences lie side by side when spread; and so many are all there or all missing.
    ROWS: tl.constexpr = PER_TILE if SEQUENCES % PER_TILE == 0 else SEQUENCES
    UNIT: tl.constexpr = _common_power_of_two(PER_TILE, SEQUENCES)

    place = tl.arange(0, VALUES)
    first = tl.program_id(0).to(tl.int64) * SEQUENCES
    units_left = tl.minimum(num_sequences - first, SEQUENCES).to(tl.int32) // UNIT

    sequence = place // LENGTH
    together = _offsets(first, sequence, place % LENGTH, LENGTH, False, SIZE, LENGTH, TILE_WIDTH, TILES_ACROSS)
    is_together = sequence // UNIT < units_left
    if PER_TILE == 1:
        spread, is_spread = together, is_together
    else:
        sequence = place // (LENGTH * ROWS) * ROWS + place % ROWS
        spread = _offsets(first, sequence, place // ROWS % LENGTH, UNIT, True, SIZE, LENGTH, TILE_WIDTH, TILES_ACROSS)
        is_spread = tl.max_constancy(sequence // UNIT, UNIT) < units_left

    if INVERSE:
        values = tl.load(x + spread, mask=is_spread)
        values = tl.reshape(values, [SEQUENCES // ROWS, LENGTH, ROWS])
        values = tl.reshape(tl.permute(values, (0, 2, 1)), [VALUES])
    else:
        values = tl.load(x + together, mask=is_together)
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
    """Sums and differences of values DISTANCE apart, in their places."""
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
    """Where value k of the sequence `first + sequence` is in the samples, before the steps or SPREAD by them.

    RUN of these places follow one another in a tile, and begin at a multiple of it.
    """
    if TILES_ACROSS == 1 and not SPREAD:  # tiles lie one after the other, and so do the sequences
        return first * LENGTH + (sequence * LENGTH + k)
    PER_TILE: tl.constexpr = SIZE // LENGTH
    # Only what a program begins with needs 64 bits, unless tiles are huge.
    INDEX: tl.constexpr = tl.int64 if SIZE * TILES_ACROSS >= 2**29 else tl.int32
    sequence = (first % PER_TILE).to(INDEX) + sequence
    tile = sequence // PER_TILE
    sequence = sequence % PER_TILE
    index = k * PER_TILE + sequence if SPREAD else sequence * LENGTH + k
    first = first // PER_TILE
    if TILES_ACROSS == 1:
        offsets = first * SIZE + (tile * SIZE + index)
        TOGETHER: tl.constexpr = RUN
    else:
        tile = (first % TILES_ACROSS).to(INDEX) + tile
        start = tile // TILES_ACROSS * (TILES_ACROSS * SIZE) + tile % TILES_ACROSS * TILE_WIDTH
        row = index // TILE_WIDTH * (TILES_ACROSS * TILE_WIDTH)
        offsets = first // TILES_ACROSS * (TILES_ACROSS * SIZE) + (start + row + index % TILE_WIDTH)
        TOGETHER: tl.constexpr = _common_power_of_two(RUN, TILE_WIDTH)
    # Not seen by the compiler alone. The hints hold only here, where the offsets are made.
    return tl.max_contiguous(tl.multiple_of(offsets, TOGETHER), TOGETHER)


@triton.constexpr_function
def _common_power_of_two(a, b):
    """The greatest power of two that divides both."""
    return (a | b) & -(a | b)


def compact_fourier(x: Tensor, inverse: bool) -> Tensor:
    """Compact orthogonal Fourier transform of samples x (B, N), N even, or its inverse. Returns (B, N)."""
    batch, size = x.shape
    if inverse:
        spectrum = x.new_empty(batch, size // 2 + 1, 2)
        _rearrange_spectrum(spectrum, x, inverse=True)
        return torch.fft.irfft(torch.view_as_complex(spectrum), n=size, norm="ortho")
    result = torch.empty_like(x)
    _rearrange_spectrum(torch.view_as_real(torch.fft.rfft(x, norm="ortho")), result, inverse=False)
    return result


def _rearrange_spectrum(spectrum: Tensor, z: Tensor, inverse: bool) -> None:
    """Makes z (B, N) of spectrum (B, N/2 + 1, 2), or the inverse."""
    batch, size = z.shape
    coefficients = LAUNCH_TABLE["compact_fourier_kernel"]["coefficients"]
    programs = -(-size // (2 * coefficients))
    launch(
        compact_fourier_kernel,
        batch * programs,
        spectrum,
        z,
        size // 2,
        programs,
        COEFFICIENTS=coefficients,
        INVERSE=inverse,
    )


@triton.jit
def compact_fourier_kernel(
    spectrum, z, half, programs_per_sample, COEFFICIENTS: tl.constexpr, INVERSE: tl.constexpr
):
    """z = [X_0, X_half, sqrt2 Re X_1.., sqrt2 Im X_1..] of X_0 .. X_half, or the inverse."""
    sample = (tl.program_id(0) // programs_per_sample).to(tl.int64)
    k = tl.program_id(0) % programs_per_sample * COEFFICIENTS + tl.arange(0, COEFFICIENTS)
    there = k < half
    spectrum += sample * (2 * half + 2)
    z += sample * (2 * half)
    # X_0 and X_half are real: the latter takes the place of the former's imaginary part.
    parts = spectrum + 2 * k[:, None] + tl.arange(0, 2)[None, :]
    to_re = z + tl.where(k == 0, 0, k + 1)
    to_im = z + tl.where(k == 0, 1, k + half)
    if INVERSE:
        c = tl.where(k == 0, 1.0, rounded(SQRT_HALF, z.dtype.element_ty))
        re = tl.load(to_re, mask=there) * c
        im = tl.load(to_im, mask=there) * c
        last = tl.join(im, tl.zeros_like(im))
        tl.store(parts, tl.join(re, tl.where(k == 0, 0.0, im)), mask=there[:, None])
        tl.store(parts + 2 * half, last, mask=(k == 0)[:, None])
    else:
        c = tl.where(k == 0, 1.0, rounded(SQRT_TWO, z.dtype.element_ty))
        re, im = tl.split(tl.load(parts, mask=there[:, None]))
        last, _ = tl.split(tl.load(parts + 2 * half, mask=(k == 0)[:, None]))
        tl.store(to_re, re * c, mask=there)
        tl.store(to_im, tl.where(k == 0, last, im) * c, mask=there)
