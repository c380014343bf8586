"""Compact Fourier transform (DESIGN section 4). Samples of 2^k values have the FFT of python_ref/fourier.py,
others torch's.

A program holds some sequences of complex numbers and takes up to four stages of the FFT, so that two launches
transform up to 2^16 numbers. The step between the FFT and the spectrum is part of the kernel that reads its
input.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...python_ref.fourier import GUARD, has_defined_fft
from ..tables import fft_factors
from .arithmetic import pairs, rounded, unpaired
from .launch import LAUNCH_TABLE, Launch, ceil_div, planned

SQRT_HALF = tl.constexpr(math.sqrt(0.5))
SQRT_TWO = tl.constexpr(math.sqrt(2.0))
SHARE = tl.constexpr(1 / GUARD)


def compact_fourier(x: Tensor, inverse: bool) -> Tensor:
    """Apply the compact orthogonal Fourier transform, or its inverse, to samples x (B, N), N even. Returns
    (B, N).
    """
    batch, size = x.shape
    if has_defined_fft(size):
        scales = 1 / math.sqrt(size), math.sqrt(0.5 / size)
        if inverse:
            return samples(x, *scales, compact=True)
        z = torch.empty_like(x)
        _spectrum_plan(batch, size, x.dtype, *scales)(fft(x), fft_factors(size, x.dtype, x.device), z)
        return z
    rearrange = _rearrangement(batch, size, x.dtype, inverse)
    if inverse:
        spectrum = x.new_empty(batch, size // 2 + 1, 2)
        rearrange(spectrum, x)
        return torch.fft.irfft(torch.view_as_complex(spectrum), n=size, norm="ortho")
    z = torch.empty_like(x)
    rearrange(torch.view_as_real(torch.fft.rfft(x, norm="ortho")), z)
    return z


# ---- samples of 2^k values ----


def fft(x: Tensor) -> Tensor:
    """FFT of samples (B, N), N a power of two, each read as N/2 complex numbers, not scaled."""
    return _transform(x, _fft_plan(len(x), x.shape[1], x.dtype, None, False))


def samples(z: Tensor, end_scale: float, scale: float, compact: bool) -> Tensor:
    """Samples (B, N) of spectra z, N a power of two: see `python_ref.fourier.samples`.

    compact: z is a result of `compact_fourier`. Otherwise it has N/2 complex numbers (B, N).
    """
    return _transform(z, _fft_plan(len(z), z.shape[1], z.dtype, (end_scale, scale), compact))


def _transform(x: Tensor, launches: list[Launch]) -> Tensor:
    factors = fft_factors(x.shape[1], x.dtype, x.device)
    for launch in launches:
        x, before = torch.empty_like(x), x
        launch(before, factors, x)
    return x


def num_factors(size: int) -> int:
    """Number of complex factors of the FFT of N = `size` values, a power of two."""
    half, left = size // 2, size // 2
    while left > 4:
        left //= 4
    return half - left + half // 2 + 1


@planned
def _fft_plan(
    batch: int, size: int, dtype: torch.dtype, scales: tuple[float, float] | None, compact: bool
) -> list[Launch]:
    """Return as few launches as possible, with evenly distributed stages.

    scales: None, or the scales of `samples`, whose first launch reads the spectrum.
    """
    half = size // 2
    values = LAUNCH_TABLE["fft_kernel"]["values"]
    bits = half.bit_length() - 1
    stages = ceil_div(bits, 2)
    num_launches = max(1, ceil_div(stages, 4))
    ends = [stages * (k + 1) // num_launches for k in range(num_launches)]
    launches = []
    length = half
    for k, end in enumerate(ends):
        after = half >> min(2 * end, bits)
        taken = length // after
        units = min(max(1, values // taken), half // taken)
        launches.append(
            Launch(
                fft_kernel,
                batch * (half // (taken * units)),
                HALF=half,
                LENGTH=length,
                AFTER=after,
                UNITS=units,
                NUM_FACTORS=num_factors(size),
                SPECTRUM=scales is not None and k == 0,
                COMPACT=compact,
                EXCHANGE=scales is not None and k == num_launches - 1,
                END_SCALE=scales[0] * GUARD if scales else 0.0,
                SCALE=scales[1] * GUARD if scales else 0.0,
            )
        )
        length = after
    return launches


@planned
def _spectrum_plan(batch: int, size: int, dtype: torch.dtype, end_scale: float, scale: float) -> Launch:
    """Return the launch that turns FFTs into results of `compact_fourier`."""
    half = size // 2
    coefficients = min(LAUNCH_TABLE["compact_spectrum_kernel"]["coefficients"], half)
    return Launch(
        compact_spectrum_kernel,
        batch * (half // coefficients),
        HALF=half,
        COEFFICIENTS=coefficients,
        NUM_FACTORS=num_factors(size),
        END_SCALE=end_scale * GUARD,
        SCALE=scale * GUARD,
    )


@triton.jit
def fft_kernel(
    x,
    factors,
    out,
    HALF: tl.constexpr,
    LENGTH: tl.constexpr,
    AFTER: tl.constexpr,
    UNITS: tl.constexpr,
    NUM_FACTORS: tl.constexpr,
    SPECTRUM: tl.constexpr,
    COMPACT: tl.constexpr,
    EXCHANGE: tl.constexpr,
    END_SCALE: tl.constexpr,
    SCALE: tl.constexpr,
):
    """Take the stages of FFTs of HALF complex numbers that replace transforms of LENGTH by some of length
    AFTER.

    A program takes UNITS adjacent sequences, each of LENGTH / AFTER numbers that are as far apart as
    possible. SPECTRUM: the input is a spectrum. It is turned into an FFT, of which the real and the imaginary
    parts are exchanged. EXCHANGE: exchange the parts of the result. An inverse FFT is an FFT between two
    exchanges.
    """
    TAKEN: tl.constexpr = LENGTH // AFTER
    SIZE: tl.constexpr = TAKEN * UNITS
    APART: tl.constexpr = HALF // TAKEN
    SPREAD: tl.constexpr = HALF // LENGTH
    PROGRAMS: tl.constexpr = APART // UNITS  # of a sample
    sample = (tl.program_id(0) // PROGRAMS).to(tl.int64) * (2 * HALF)
    first = tl.program_id(0) % PROGRAMS * UNITS
    x += sample
    out += sample

    i = tl.arange(0, SIZE)
    place = first + i % UNITS + i // UNITS * APART
    if SPECTRUM:
        im, re = turned(x, factors, place, HALF, NUM_FACTORS, END_SCALE, SCALE, True, COMPACT)
    else:
        re, im = tl.split(tl.load(x + 2 * place[:, None] + tl.arange(0, 2)[None, :]))

    # Units are adjacent transforms, or the same place of adjacent transforms, or both.
    INNER: tl.constexpr = min(SPREAD, UNITS)
    OUTER: tl.constexpr = UNITS // INNER
    LOG_TAKEN: tl.constexpr = TAKEN.bit_length() - 1
    for stage in tl.static_range((LOG_TAKEN + 1) // 2):
        re, im = _stage(
            re, im, factors, first // SPREAD, HALF, LENGTH >> (2 * stage), AFTER, OUTER, INNER << (2 * stage),
            NUM_FACTORS,
        )  # fmt: skip
    if EXCHANGE:
        re, im = im, re
    inner, k, outer = i % INNER, i // INNER % TAKEN, i // (INNER * TAKEN)
    place = first % SPREAD + inner + SPREAD * (k + TAKEN * (first // SPREAD + outer))
    tl.store(out + 2 * place[:, None] + tl.arange(0, 2)[None, :], tl.join(re, im))


@triton.jit
def _stage(
    re,
    im,
    factors,
    first,
    HALF: tl.constexpr,
    LENGTH: tl.constexpr,
    AFTER: tl.constexpr,
    OUTER: tl.constexpr,
    SPREAD: tl.constexpr,
    NUM_FACTORS: tl.constexpr,
):
    """Take a stage of radix 4, or of radix 2 if LENGTH is 2. See `python_ref.fourier.complex_fft`."""
    SIZE: tl.constexpr = re.numel
    even_re, even_im, odd_re, odd_im = _sums(re, im, SIZE // 2)
    if LENGTH == 2:
        return unpaired(even_re, odd_re, SPREAD), unpaired(even_im, odd_im, SPREAD)
    else:
        # Now `even` is (a + c, b + d), and `odd` is (a - c, b - d).
        a_re, a_im, c_re, c_im = _sums(even_re, even_im, SIZE // 4)
        e_re, o_re = pairs(odd_re, SIZE // 4)
        e_im, o_im = pairs(odd_im, SIZE // 4)
        b_re, b_im, d_re, d_im = e_re + o_im, e_im - o_re, e_re - o_im, e_im + o_re
        if LENGTH > 4:
            unit = tl.arange(0, SIZE // 4) // SPREAD
            factor = factors + (HALF - LENGTH) + first + unit % OUTER + unit // OUTER * AFTER
            b_re, b_im = _product(b_re, b_im, factor, NUM_FACTORS)
            c_re, c_im = _product(c_re, c_im, factor + LENGTH // 4, NUM_FACTORS)
            d_re, d_im = _product(d_re, d_im, factor + LENGTH // 2, NUM_FACTORS)
        re = unpaired(unpaired(a_re, b_re, SPREAD), unpaired(c_re, d_re, SPREAD), 2 * SPREAD)
        im = unpaired(unpaired(a_im, b_im, SPREAD), unpaired(c_im, d_im, SPREAD), 2 * SPREAD)
        return re, im


@triton.jit
def _sums(re, im, DISTANCE: tl.constexpr):
    """Sums and differences of complex numbers DISTANCE apart."""
    a_re, b_re = pairs(re, DISTANCE)
    a_im, b_im = pairs(im, DISTANCE)
    return a_re + b_re, a_im + b_im, a_re - b_re, a_im - b_im


@triton.jit
def _product(re, im, factor, NUM_FACTORS: tl.constexpr):
    c, s = tl.load(factor), tl.load(factor + NUM_FACTORS)
    return re * c - im * s, re * s + im * c


@triton.jit
def turned(
    z,
    factors,
    k,
    HALF: tl.constexpr,
    NUM_FACTORS: tl.constexpr,
    END_SCALE: tl.constexpr,
    SCALE: tl.constexpr,
    INVERSE: tl.constexpr,
    COMPACT: tl.constexpr,
):
    """Number k of the spectrum of a sample whose FFT is z, or of the FFT whose spectrum is z (INVERSE).

    See `_turn` in python_ref/fourier.py. COMPACT: z is a result of `compact_fourier`, not complex numbers.
    """
    dtype: tl.constexpr = z.dtype.element_ty
    upper = (k >= HALF // 2) & (k > 0)
    lower_k = tl.where(upper, HALF - k, k)
    upper_k = tl.where(k == 0, 0, HALF - lower_k)
    k_re, k_im = _parts(z, lower_k, HALF, COMPACT)
    n_re, n_im = _parts(z, upper_k, HALF, COMPACT)
    factor = factors + (NUM_FACTORS - HALF // 2 - 1) + lower_k
    c, s = tl.load(factor), tl.load(factor + NUM_FACTORS)

    end_re, end_im = (k_re + k_im) * rounded(END_SCALE, dtype), (k_re - k_im) * rounded(END_SCALE, dtype)
    sum_re, sum_im = k_re + n_re, k_im - n_im
    dif_re, dif_im = k_re - n_re, k_im + n_im
    if INVERSE:
        odd_re, odd_im = s * dif_re - c * dif_im, c * dif_re + s * dif_im
    else:
        odd_re, odd_im = c * dif_im + s * dif_re, s * dif_im - c * dif_re
    re = tl.where(upper, sum_re - odd_re, sum_re + odd_re) * rounded(SCALE, dtype)
    im = tl.where(upper, odd_im - sum_im, sum_im + odd_im) * rounded(SCALE, dtype)
    return tl.where(k == 0, end_re, re), tl.where(k == 0, end_im, im)


@triton.jit
def _parts(z, k, HALF: tl.constexpr, COMPACT: tl.constexpr):
    """Real and imaginary part of number k, divided by the guard of python_ref/fourier.py."""
    share = rounded(SHARE, z.dtype.element_ty)
    if COMPACT:
        re, im = compact_places(k, HALF)
        return tl.load(z + re) * share, tl.load(z + im) * share
    else:
        return tl.load(z + 2 * k) * share, tl.load(z + 2 * k + 1) * share


@triton.jit
def compact_places(k, HALF):
    """Places of the parts of X_k in z = [X_0, X_half, sqrt2 Re X_1.., sqrt2 Im X_1..]. X_half is the
    imaginary part of X_0.
    """
    return tl.where(k == 0, 0, k + 1), tl.where(k == 0, 1, k + HALF)


@triton.jit
def compact_spectrum_kernel(
    x,
    factors,
    z,
    HALF: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    NUM_FACTORS: tl.constexpr,
    END_SCALE: tl.constexpr,
    SCALE: tl.constexpr,
):
    """Turn FFTs of HALF complex numbers into results of `compact_fourier`."""
    PROGRAMS: tl.constexpr = HALF // COEFFICIENTS  # of a sample
    sample = (tl.program_id(0) // PROGRAMS).to(tl.int64) * (2 * HALF)
    k = tl.program_id(0) % PROGRAMS * COEFFICIENTS + tl.arange(0, COEFFICIENTS)
    re, im = turned(x + sample, factors, k, HALF, NUM_FACTORS, END_SCALE, SCALE, False, False)
    re_place, im_place = compact_places(k, HALF)
    tl.store(z + sample + re_place, re)
    tl.store(z + sample + im_place, im)


# ---- samples of other sizes ----


@planned
def _rearrangement(batch: int, size: int, dtype: torch.dtype, inverse: bool) -> Launch:
    """Return the launch that rearranges spectra (B, N/2 + 1, 2) to z (B, N), or the inverse."""
    coefficients = LAUNCH_TABLE["compact_fourier_kernel"]["coefficients"]
    programs = ceil_div(size // 2, coefficients)
    return Launch(
        compact_fourier_kernel,
        batch * programs,
        size // 2,
        programs,
        COEFFICIENTS=coefficients,
        INVERSE=inverse,
    )


@triton.jit
def compact_fourier_kernel(
    spectrum, z, half: tl.int64, programs_per_sample, COEFFICIENTS: tl.constexpr, INVERSE: tl.constexpr
):
    """Rearrange X_0 .. X_half to z = [X_0, X_half, sqrt2 Re X_1.., sqrt2 Im X_1..], or the inverse."""
    dtype: tl.constexpr = z.dtype.element_ty
    sample = tl.program_id(0) // programs_per_sample
    program = tl.program_id(0) % programs_per_sample
    spectrum += sample * (2 * half + 2)
    z += sample * (2 * half)
    k = program.to(tl.int64) * COEFFICIENTS + tl.arange(0, COEFFICIENTS)
    there = (k > 0) & (k < half)
    parts = spectrum + 2 * k[:, None] + tl.arange(0, 2)[None, :]
    if INVERSE:
        c = rounded(SQRT_HALF, dtype)
        re = tl.load(z + 1 + k, mask=there) * c
        im = tl.load(z + half + k, mask=there) * c
        tl.store(parts, tl.join(re, im), mask=there[:, None])
    else:
        c = rounded(SQRT_TWO, dtype)
        re, im = tl.split(tl.load(parts, mask=there[:, None]))
        tl.store(z + 1 + k, re * c, mask=there)
        tl.store(z + half + k, im * c, mask=there)
    if program == 0:  # X_0 and X_half, which are real
        end = tl.arange(0, 2)
        ends = spectrum + end * (2 * half)
        if INVERSE:
            tl.store(ends, tl.load(z + end))
            tl.store(ends + 1, tl.zeros([2], dtype))
        else:
            tl.store(z + end, tl.load(ends))
