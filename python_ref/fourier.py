"""Compact Fourier transform, and the FFT that defines its rounding for power-of-two sizes."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from . import special
from .arithmetic import SQRT_HALF

GUARD = 4.0
"""Values are divided by this before they are added. The sums of up to four finite values are then finite."""

Complex = tuple[Tensor, Tensor]
"""Real and imaginary parts (B, h)."""


def has_defined_fft(size: int) -> bool:
    """Return True if this module defines the FFT of N = `size` values: N is a power of two, 2 or more.

    Other sizes are transformed by torch's FFT, whose rounding depends on the library.
    """
    return size >= 2 and size & (size - 1) == 0


def compact_fourier(x: Tensor) -> Tensor:
    """Compact orthogonal Fourier transform of every sample, (B, N) -> (B, N), N even (DESIGN section 4).

    With X = rfft(x, norm="ortho"), z = [X_0, X_{N/2}, sqrt2 Re X_1.., sqrt2 Im X_1..] (paper eq. 112).
    z ~ N(0, I) if and only if x ~ N(0, I).
    """
    size = x.shape[1]
    if has_defined_fft(size):
        re, im = spectrum(x, end_scale=1 / math.sqrt(size), scale=math.sqrt(0.5 / size))
        return torch.cat([re[:, :1], im[:, :1], re[:, 1:], im[:, 1:]], dim=1)
    half_spectrum = torch.fft.rfft(x, norm="ortho")
    interior = math.sqrt(2.0) * half_spectrum[:, 1:-1]
    return torch.cat(
        [half_spectrum[:, :1].real, half_spectrum[:, -1:].real, interior.real, interior.imag], dim=1
    )


def compact_fourier_inverse(z: Tensor) -> Tensor:
    """Inverse (and transpose) of `compact_fourier`."""
    size, half = z.shape[1], z.shape[1] // 2
    if has_defined_fft(size):
        re = torch.cat([z[:, :1], z[:, 2 : half + 1]], dim=1)
        im = torch.cat([z[:, 1:2], z[:, half + 1 :]], dim=1)
        return samples(re, im, end_scale=1 / math.sqrt(size), scale=math.sqrt(0.5 / size))
    interior = torch.complex(z[:, 2 : half + 1], z[:, half + 1 :]) * SQRT_HALF
    ends = torch.complex(z[:, :2], torch.zeros_like(z[:, :2]))
    half_spectrum = torch.cat([ends[:, :1], interior, ends[:, 1:]], dim=1)
    return torch.fft.irfft(half_spectrum, n=size, norm="ortho")


# ---- FFT of N = 2^k real values, from a complex FFT of h = N/2 ----


def spectrum(x: Tensor, end_scale: float, scale: float) -> Complex:
    """Spectrum of real samples (B, N), N a power of two (DESIGN section 4).

    Returns:
        Real and imaginary parts (B, h). Place k > 0 has 2 scale X_k, with X = rfft(x). Place 0 has end_scale
        X_0 as its real part and end_scale X_h as its imaginary part.
    """
    factors = twiddle_factors(x.shape[1], x.dtype).to(x.device)
    re, im = complex_fft(x[:, 0::2], x[:, 1::2], factors)
    return _turn(re, im, factors, end_scale, scale, inverse=False)


def samples(re: Tensor, im: Tensor, end_scale: float, scale: float) -> Tensor:
    """Transpose of `spectrum`: parts (B, h) -> (B, N)."""
    factors = twiddle_factors(2 * re.shape[1], re.dtype).to(re.device)
    re, im = _turn(re, im, factors, end_scale, scale, inverse=True)
    # An inverse FFT, not scaled, is the FFT with real and imaginary parts exchanged.
    im, re = complex_fft(im, re, factors)
    return torch.stack([re, im], dim=2).flatten(1)


def complex_fft(re: Tensor, im: Tensor, factors: Tensor) -> Complex:
    """FFT of rows (B, h) of complex numbers, h a power of two, not scaled, in natural order.

    Radix 4, decimation in frequency, self-sorting (Stockham). Each stage replaces transforms of length L by
    transforms of length L/4: with z[q + s (p + i L/4)] for i = 0 .. 3 as input, it writes part i of their
    transform of length 4, times exp(-2 pi i ip/L), to place q + s (4p + i). If h is not a power of four, the
    last stage has radix 2. A stage that leaves transforms of length 1 multiplies by no factors.
    """
    rows, left = re.shape
    spread, first = 1, 0  # s, and the number of the stage's first factor
    while left > 1:
        radix = 4 if left % 4 == 0 else 2
        left //= radix
        parts = zip(*(v.reshape(rows, radix, left, spread).unbind(1) for v in (re, im)), strict=True)
        results = (_transform_of_4 if radix == 4 else _transform_of_2)(*parts)
        if left > 1:
            stage = factors[:, first : first + 3 * left].reshape(2, 3, left, 1)
            first += 3 * left
            results = [results[0], *map(_product, results[1:], zip(*stage, strict=True))]
        re, im = (torch.stack(v, dim=2).reshape(rows, -1) for v in zip(*results, strict=True))
        spread *= radix
    return re, im


def _transform_of_2(a: Complex, b: Complex) -> list[Complex]:
    return [(a[0] + b[0], a[1] + b[1]), (a[0] - b[0], a[1] - b[1])]


def _transform_of_4(a: Complex, b: Complex, c: Complex, d: Complex) -> list[Complex]:
    even, even_difference = _transform_of_2(a, c)
    odd, odd_difference = _transform_of_2(b, d)
    turned = odd_difference[1], -odd_difference[0]  # times -i
    first, third = _transform_of_2(even, odd)
    second, fourth = _transform_of_2(even_difference, turned)
    return [first, second, third, fourth]


def _product(z: Complex, factor: Complex) -> Complex:
    (re, im), (c, s) = z, factor
    return re * c - im * s, re * s + im * c


def _turn(re: Tensor, im: Tensor, factors: Tensor, end_scale: float, scale: float, inverse: bool) -> Complex:
    """Turn the FFT Z of samples, read as h complex numbers, into their scaled spectrum X, or back.

    With w = exp(-2 pi i / N), X_k = (Z_k + conj Z_{h-k}) / 2 - i w^k (Z_k - conj Z_{h-k}) / 2. So Z_k and
    Z_{h-k} give X_k and X_{h-k}, and vice versa. Place 0 has X_0 and X_h, the sum and the difference of the
    parts of Z_0. The middle, k = h/2, is written as Z_{h-k}.
    """
    half = re.shape[1] // 2
    re, im = re / GUARD, im / GUARD
    end_scale, scale = end_scale * GUARD, scale * GUARD
    a, b = re[:, :1], im[:, :1]
    ends = (a + b) * end_scale, (a - b) * end_scale

    k_re, k_im = re[:, 1 : half + 1], im[:, 1 : half + 1]
    n_re, n_im = re[:, half:].flip(1)[:, :half], im[:, half:].flip(1)[:, :half]
    c, s = factors[:, -half - 1 :][:, 1:]
    sum_re, sum_im = k_re + n_re, k_im - n_im
    dif_re, dif_im = k_re - n_re, k_im + n_im
    if inverse:  # the difference times i conj(w^k)
        odd_re, odd_im = s * dif_re - c * dif_im, c * dif_re + s * dif_im
    else:  # the difference times -i w^k
        odd_re, odd_im = c * dif_im + s * dif_re, s * dif_im - c * dif_re
    k_re, k_im = (sum_re + odd_re) * scale, (sum_im + odd_im) * scale
    n_re, n_im = (sum_re - odd_re) * scale, (odd_im - sum_im) * scale
    return (
        torch.cat([ends[0], k_re[:, :-1], n_re.flip(1)], dim=1),
        torch.cat([ends[1], k_im[:, :-1], n_im.flip(1)], dim=1),
    )


@lru_cache(maxsize=8)
def twiddle_factors(size: int, dtype: torch.dtype) -> Tensor:
    """Factors of the FFT of N = `size` real values, N even: cosines and sines (2, K), float64 rounded once.

    If N is a power of two, first the factors of each stage of `complex_fft` that has some. For transforms of
    length L they are exp(-2 pi i ip/L), i = 1 .. 3, p = 0 .. L/4 - 1, p fastest. Then, for every N, exp(-2 pi
    i k/N), k = 0 .. N/4, for the step between the complex FFT and the spectrum.
    """
    factors = []
    left = size // 2 if has_defined_fft(size) else 0
    with torch.inference_mode(False):  # kept, also for calls with gradients
        while left > 4:
            turns = torch.outer(_integers(1, 4), _integers(0, left // 4)).flatten()
            factors.append(_unit_roots(turns, left).to(dtype))
            left //= 4
        factors.append(_unit_roots(_integers(0, size // 4 + 1), size).to(dtype))
        return torch.cat(factors, dim=1)


def _unit_roots(turns: Tensor, size: int) -> Tensor:
    """Real and imaginary parts of exp(-2 pi i k / size) for k in `turns`, 0 <= k < size, float64.

    Angles are reduced to [0, pi/4], so that symmetric roots are equal but for signs, and 1, -i, -1, i exact.
    """
    octant, rest = 8 * turns // size, 8 * turns % size
    angle = (math.pi / 4) * (torch.where(octant % 2 == 0, rest, size - rest).double() / size)
    cos, sin = special.cos(angle), special.sin(angle)
    steep = (octant + 1) // 2 % 2 == 1
    re = torch.where(steep, sin, cos) * torch.where((octant >= 2) & (octant < 6), -1, 1)
    im = torch.where(steep, cos, sin) * torch.where(octant < 4, -1, 1)
    return torch.stack([re, im]) + 0.0  # -0 becomes 0


def _integers(start: int, stop: int) -> Tensor:
    return torch.arange(start, stop, device="cpu")
