"""WGNC: projection onto the expected norms of every block of the compact complex spectrum, in float64 (DESIGN
section 6).
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...python_ref.fourier import GUARD, has_defined_fft
from ..tables import fft_factors
from .arithmetic import div_rn, is_finite, rounded, sqrt_rn
from .fourier import fft, num_factors, samples, turned
from .launch import LAUNCH_TABLE, Launch, ceil_div, planned, power_of_two
from .sorting import LAST, sort_entries

SQRT_HALF = tl.constexpr(math.sqrt(0.5))
SQRT_TWO = tl.constexpr(math.sqrt(2.0))


def project_wgnc(x: Tensor, block_size: int) -> Tensor:
    """Project every sample of x (B, N) onto the white Gaussian noise constraints. Returns (B, N)."""
    batch, size = x.shape
    blocks_per_sample = size // (2 * block_size)
    if has_defined_fft(size):
        root = math.sqrt(size)
        scales = math.sqrt(0.5) / root, 0.5 / root
        project = _projection(batch, blocks_per_sample, block_size, x.dtype, False, scales)
        spectrum = torch.empty_like(x)
        project(fft(x), spectrum, fft_factors(size, x.dtype, x.device))
        return samples(spectrum, math.sqrt(2.0) / root, 1 / root, compact=False)
    spectrum = torch.fft.rfft(x, norm="ortho")
    parts = torch.view_as_real(spectrum)
    _projection(batch, blocks_per_sample, block_size, x.dtype, True)(parts, parts, parts)
    return torch.fft.irfft(spectrum, n=size, norm="ortho")


def project_wgnc_blocks(y: Tensor, block_size: int) -> Tensor:
    """Project every block of compact complex spectra y (B, n). Returns (B, n)."""
    batch, size = y.shape
    result = torch.empty_like(y)
    project = _projection(batch, size // block_size, block_size, y.dtype, False)
    parts = torch.view_as_real(y)
    project(parts, torch.view_as_real(result), parts)
    return result


@planned
def _projection(
    batch: int,
    blocks_per_sample: int,
    block_size: int,
    dtype: torch.dtype,
    of_half_spectrum: bool,
    fft_scales: tuple[float, float] | None = None,
) -> Launch:
    """Return the launch for parts (real, imaginary) of spectra (B, n, 2) or half spectra (B, n + 1, 2), or of
    FFTs (B, n, 2) with the scales of their spectra.
    """
    padded = power_of_two(block_size)
    sizes = LAUNCH_TABLE["project_wgnc_blocks_kernel"]
    # One thread holds a small block. Larger blocks are spread over threads and take more registers.
    blocks = sizes["blocks"] if padded <= 16 else max(sizes["coefficients"] // padded, 1)
    t = math.pi * block_size / 4
    return Launch(
        project_wgnc_blocks_kernel,
        ceil_div(batch * blocks_per_sample, blocks),
        batch * blocks_per_sample,
        blocks_per_sample,
        in_place=of_half_spectrum,
        SIZE=block_size,
        PADDED=padded,
        BLOCKS=blocks,
        T=t,
        A=math.sqrt(math.pi) / 2 * block_size,
        FEWEST=math.floor(t) + 1,
        HALF_SPECTRUM=of_half_spectrum,
        FFT_SIZE=blocks_per_sample * block_size if fft_scales else 0,
        NUM_FACTORS=num_factors(2 * blocks_per_sample * block_size) if fft_scales else 0,
        END_SCALE=fft_scales[0] * GUARD if fft_scales else 0.0,
        SCALE=fft_scales[1] * GUARD if fft_scales else 0.0,
    )


@triton.jit
def project_wgnc_blocks_kernel(
    y,
    out,
    factors,
    num_blocks,
    blocks_per_sample: tl.int64,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCKS: tl.constexpr,
    T: tl.constexpr,
    A: tl.constexpr,
    FEWEST: tl.constexpr,
    HALF_SPECTRUM: tl.constexpr,
    FFT_SIZE: tl.constexpr,
    NUM_FACTORS: tl.constexpr,
    END_SCALE: tl.constexpr,
    SCALE: tl.constexpr,
):
    """Project blocks of SIZE coefficients onto {|y|_1 = A, |y|_1^2 = T |y|_2^2}. A program projects BLOCKS
    blocks.

    HALF_SPECTRUM: the input is X_0 .. X_n of real samples. Their first coefficient is (X_0 + i X_n) / sqrt2.
    FFT_SIZE: the input is an FFT of so many numbers for each sample, from which the spectrum is made, or 0.
    """
    dtype: tl.constexpr = y.dtype.element_ty
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)[:, None]
    j = tl.arange(0, PADDED)[None, :]
    if FFT_SIZE > 0:
        number = tl.minimum(first + block, num_blocks - 1)
        z = y + number // blocks_per_sample * (2 * FFT_SIZE)
        k = (number % blocks_per_sample).to(tl.int32) * SIZE + j
        parts = tl.join(*turned(z, factors, k, FFT_SIZE, NUM_FACTORS, END_SCALE, SCALE, False, False))
    y += 2 * first * SIZE
    out += 2 * first * SIZE
    there = (block < num_blocks - first) & (j < SIZE)
    places = 2 * (block * SIZE + j)
    if HALF_SPECTRUM:
        sample = first // blocks_per_sample
        y += 2 * sample
        out += 2 * sample
        block += first % blocks_per_sample
        places += 2 * (block // blocks_per_sample).to(tl.int32)
        is_first = there & (block % blocks_per_sample == 0) & (j == 0)
        to_last = 2 * blocks_per_sample * SIZE
    all_places = places[:, :, None] + tl.arange(0, 2)[None, None, :]
    if FFT_SIZE == 0:
        parts = tl.load(y + all_places, mask=there[:, :, None], other=0.0)
    if HALF_SPECTRUM:
        re, im = tl.split(parts)
        c = rounded(SQRT_HALF, dtype)
        im = tl.where(is_first, tl.load(y + to_last + places, mask=is_first, other=0.0) * c, im)
        parts = tl.join(tl.where(is_first, re * c, re), im)

    # Blocks are columns: with as many blocks as threads, each thread holds a whole block.
    re, im = tl.split(tl.permute(parts, (1, 0, 2)).to(tl.float64))
    faults = tl.where(is_finite(re) & is_finite(im), 0, 1)
    finite = tl.sum(faults, axis=0)[None, :] == 0
    re, im = tl.where(finite, re, 0.0), tl.where(finite, im, 0.0)
    if dtype == tl.float64:  # squares must not over- or underflow; the result does not depend on the scale
        largest = tl.max(tl.maximum(tl.abs(re), tl.abs(im)), axis=0)[None, :]
        largest = tl.where(largest == 0, 1.0, largest)
        re, im = div_rn(re, largest), div_rn(im, largest)

    r = sqrt_rn(re * re + im * im)
    radius = _projected_radii(r, SIZE, PADDED, BLOCKS, T, A, FEWEST)
    factor = div_rn(radius, tl.where(r == 0, 1.0, r))
    re = tl.where(r == 0, radius, factor * re)  # the phase of 0 is 1
    im = tl.where(r == 0, 0.0, factor * im)
    re, im = tl.where(finite, re, float("nan")), tl.where(finite, im, float("nan"))
    parts = tl.permute(tl.join(re, im).to(dtype), (1, 0, 2))

    if HALF_SPECTRUM:
        re, im = tl.split(parts)
        c = rounded(SQRT_TWO, dtype)
        tl.store(out + to_last + places, im * c, mask=is_first)
        parts = tl.join(tl.where(is_first, re * c, re), tl.where(is_first, 0.0, im))
    tl.store(out + all_places, parts, mask=there[:, :, None])


@triton.jit
def _projected_radii(
    r,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCKS: tl.constexpr,
    T: tl.constexpr,
    A: tl.constexpr,
    FEWEST: tl.constexpr,
):
    """Magnitudes (PADDED, BLOCKS) of the projected blocks, given the magnitudes r before. See
    python_ref/wgnc.py.
    """
    UNROLLED: tl.constexpr = SIZE if SIZE <= 32 else 1
    j = tl.arange(0, PADDED)[:, None]
    # The bits of numbers >= 0 have the order of the numbers. Their complements have the reverse order.
    key = tl.where(j < SIZE, ~r.to(tl.int64, bitcast=True), LAST)
    key = tl.reshape(key, [PADDED * BLOCKS])
    key, _ = sort_entries(key, key, BLOCKS, PADDED, False)
    w = tl.reshape(~key, [PADDED, BLOCKS]).to(tl.float64, bitcast=True)
    greatest = _row(w, 0)
    d = w - greatest

    t, a, size = rounded(T, tl.float64), rounded(A, tl.float64), rounded(SIZE, tl.float64)
    delta = tl.zeros([1, BLOCKS], tl.float64)
    found = delta != 0
    d1, d2 = delta, delta
    next_d = _row(d, 0)
    for n in tl.range(1, SIZE + 1, loop_unroll_factor=UNROLLED):
        d1, d2 = d1 + next_d, d2 + next_d * next_d
        next_d = _row(d, n)
        if n >= FEWEST:
            count = tl.full([1], n, tl.float64)
            candidate = div_rn(d1 - sqrt_rn(div_rn(t * (count * d2 - d1 * d1), count - t)), count)
            fits = ~found & ((next_d <= candidate) | (n == SIZE))
            delta, found = tl.where(fits, candidate, delta), found | fits

    total = tl.zeros([1, BLOCKS], tl.float64)
    for n in tl.range(0, SIZE, loop_unroll_factor=UNROLLED):
        total += _positive_part(_row(d, n) - delta)
    gain = div_rn(a, total)

    # If more than t magnitudes tie at the maximum, several points are nearest. The result is the one in which
    # the first tied magnitude is the largest.
    k = tl.sum(tl.where((w == greatest) & (j < SIZE), 1, 0), axis=0)[None, :].to(tl.float64)
    r_first = div_rn(a + sqrt_rn((k - 1) * (k * size - a * a)), k)
    r_other = div_rn(a - r_first, k - 1)
    tied = r == greatest
    first = j == tl.min(tl.where(tied, j, PADDED), axis=0)[None, :]
    degenerate = tl.where(first, r_first, tl.where(tied, r_other, 0.0))
    return tl.where(k >= FEWEST, degenerate, gain * _positive_part((r - greatest) - delta))


@triton.jit
def _row(x, n):
    """Row n of x (M, N), float64, as (1, N).

    The sum is over integers: if a thread holds whole columns, the compiler omits additions of 0, but not of
    0.0.
    """
    is_there = tl.arange(0, x.shape[0])[:, None] == n
    bits = tl.sum(tl.where(is_there, x.to(tl.int64, bitcast=True), 0), axis=0)
    return bits[None, :].to(tl.float64, bitcast=True)


@triton.jit
def _positive_part(x):
    return tl.where(x > 0, x, 0.0)
