"""WGNC: projection onto the expected l1 and l2 norms of every block of the compact complex spectrum."""

import math

import torch
from torch import Tensor

from .arithmetic import SQRT_HALF, sqrt_rn
from .fourier import has_defined_fft, samples, spectrum


def to_wgnc_spectrum(x: Tensor) -> Tensor:
    """Compact complex spectrum (B, N/2) of real samples (B, N), N even (WGNC prop. 4.1).

    y_0 = (X_0 + i X_{N/2}) / sqrt2 and y_k = X_k, with X = rfft(x, norm="ortho").
    """
    size = x.shape[1]
    if has_defined_fft(size):
        root = math.sqrt(size)
        return torch.complex(*spectrum(x, end_scale=SQRT_HALF / root, scale=0.5 / root))
    return pack_spectrum(torch.fft.rfft(x, norm="ortho"))


def pack_spectrum(half_spectrum: Tensor) -> Tensor:
    """Compact complex spectrum (B, N/2) of X = rfft(x, norm="ortho") (B, N/2 + 1), see `to_wgnc_spectrum`."""
    first = torch.complex(half_spectrum[:, :1].real, half_spectrum[:, -1:].real) * SQRT_HALF
    return torch.cat([first, half_spectrum[:, 1:-1]], dim=1)


def from_wgnc_spectrum(y: Tensor) -> Tensor:
    """Inverse of `to_wgnc_spectrum`: complex (B, N/2) -> (B, N)."""
    size = 2 * y.shape[1]
    if has_defined_fft(size):
        root = math.sqrt(size)
        return samples(y.real, y.imag, end_scale=math.sqrt(2.0) / root, scale=1 / root)
    ends = torch.view_as_real(y[:, :1]) * math.sqrt(2.0)  # [B, 1, 2]: X_0, X_{N/2}
    ends = torch.complex(ends, torch.zeros_like(ends))
    half_spectrum = torch.cat([ends[..., 0], y[:, 1:], ends[..., 1]], dim=1)
    return torch.fft.irfft(half_spectrum, n=size, norm="ortho")


def project_wgnc(x: Tensor, block_size: int = 16) -> Tensor:
    """Project every sample onto the white Gaussian noise constraints (DESIGN section 6).

    x: samples (B, N), float32 or float64, N divisible by 2*block_size. Returns (B, N).
    """
    return from_wgnc_spectrum(project_wgnc_blocks(to_wgnc_spectrum(x), block_size))


def project_wgnc_blocks(y: Tensor, block_size: int = 16) -> Tensor:
    """Project every block of B coefficients onto {|y|_1 = sqrt(pi)/2 B, |y|_2^2 = B} (DESIGN section 6).

    y: spectra (..., n), complex64 or complex128, n divisible by block_size >= 2. The arithmetic is float64.
    The result has y's dtype. A block that contains NaN or inf becomes NaN.
    """
    parts = torch.view_as_real(y).double().unflatten(-2, (-1, block_size))  # [..., P, B, 2]
    shape = parts.shape
    parts = parts.reshape(-1, block_size, 2)
    finite = parts.isfinite().all(dim=2).all(dim=1)
    parts = torch.where(finite[:, None, None], parts, 0.0)
    if y.dtype == torch.complex128:  # scaled: squares must not over- or underflow, and the result is the same
        largest = parts.abs().amax(dim=(1, 2), keepdim=True)
        parts = parts / torch.where(largest == 0, 1.0, largest)

    re, im = parts.unbind(-1)  # [P, B]
    r = sqrt_rn(re * re + im * im)
    radius = _projected_radii(r)
    scaled = (radius / torch.where(r == 0, 1.0, r))[..., None] * parts
    at_zero = torch.stack([radius, torch.zeros_like(radius)], dim=-1)  # the phase of 0 is taken as 1
    result = torch.where((r == 0)[..., None], at_zero, scaled)
    result = torch.where(finite[:, None, None], result, torch.nan)
    return torch.view_as_complex(result.reshape(shape).flatten(-3, -2).to(y.real.dtype).contiguous())


def _projected_radii(r: Tensor) -> Tensor:
    """Magnitudes (P, B) of the projected blocks, given the magnitudes r (P, B) before, float64.

    The soft threshold lambda = w_1 + delta is the root of |(r-lambda)+|_1^2 = t |(r-lambda)+|_2^2. The
    magnitudes are shifted by their maximum w_1, which keeps digits when they are nearly tied. delta_n is the
    root if exactly the n largest magnitudes exceed it. The right n is the smallest one with d_{n+1} <=
    delta_n. Then delta_n < d_n holds as well: with one element fewer, the ratio of the norms at d_n is below
    t.
    """
    size = r.shape[1]
    t = math.pi * size / 4
    a = math.sqrt(math.pi) / 2 * size
    fewest = math.floor(t) + 1  # fewer coefficients cannot have both norms

    w = r.sort(dim=1, descending=True, stable=True).values
    d = w - w[:, :1]

    delta = torch.zeros_like(d[:, 0])
    found = torch.zeros_like(delta, dtype=torch.bool)
    d1, d2 = torch.zeros_like(delta), torch.zeros_like(delta)
    for n in range(1, size + 1):
        d1, d2 = d1 + d[:, n - 1], d2 + d[:, n - 1] * d[:, n - 1]
        if n >= fewest:
            candidate = (d1 - sqrt_rn(t * (n * d2 - d1 * d1) / (n - t))) / n
            fits = ~found & (d[:, n] <= candidate) if n < size else ~found
            delta, found = torch.where(fits, candidate, delta), found | fits

    total = torch.zeros_like(delta)
    for n in range(size):
        total = total + _positive_part(d[:, n] - delta)
    u = _positive_part((r - w[:, :1]) - delta[:, None])
    # both operands are tensors: PyTorch computes number / tensor as number * reciprocal
    regular = (torch.full_like(total, a) / total)[:, None] * u

    # If more than t magnitudes tie at the maximum, several points are nearest. The result is the one in which
    # the first tied magnitude is the largest.
    tied = r == w[:, :1]
    k = tied.sum(dim=1).double()
    first = tied & (tied.cumsum(dim=1) == 1)
    r_first = (a + sqrt_rn((k - 1) * (k * size - a * a))) / k
    r_other = (a - r_first) / (k - 1)
    degenerate = torch.where(first, r_first[:, None], torch.where(tied, r_other[:, None], 0.0))
    return torch.where((k >= fewest)[:, None], degenerate, regular)


def _positive_part(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.0)
