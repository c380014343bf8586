"""Regularizers of noise: functions that are low for Gaussian noise, for methods that optimise noise.

Each takes samples (B, *shape) of N values and returns (B,), float64, differentiable. A sample is computed
alone, so it has the same bits in every batch. Permutations are (B, P, N), int64, with fresh random ones for
each call; see `Batch.permutations`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..python_ref.wgnc import pack_spectrum
from .batch import Batch

ROW = 4
"""Values of a row in `prno`: the published code has 4^k values, with k = 1."""

BLOCK = 16
"""Coefficients of a block in `mpgr`."""

_RAYLEIGH_MEAN = math.sqrt(math.pi) / 2
"""Mean magnitude of a spectral coefficient of noise with variance 1. A summary of MPGR's paper has 0.875."""


def check_size(function: str, shape: tuple[int, ...], divisor: int) -> None:
    """Raise ValueError unless the number of values of a latent is divisible by `divisor`."""
    if math.prod(shape) % divisor:
        raise ValueError(
            f"{function}: model.shape must have a number of values divisible by {divisor}, got {shape}"
        )


def norm(x: Tensor) -> Tensor:
    """Return |x|^2 / 2 - (N - 1) log |x|, least where |x|^2 = N - 1 (ReNO).

    It is the negative log-density of the norm of Gaussian noise, up to a constant.
    """
    return torch.stack([_norm(sample.flatten().double()) for sample in x])


def _norm(x: Tensor) -> Tensor:
    square = x.square().sum()
    return square / 2 - (len(x) - 1) / 2 * square.log()


def prno(x: Tensor, permutations: Tensor) -> Tensor:
    """Return minus the log of two concentration bounds, of x and as the mean over the permutations (PRNO).

    With the N / 4 = m rows z_j of 4 = k values, a = |mean z_j| and B the spectral norm of mean z_j z_j^T - I,

        l_1 = min(-m a^2 / (2 k), -log 2)
        l_2 = min(-m / 2 max(sqrt(1 + B) - 1 - sqrt(k / m), 0)^2, -log 2)

    and the result is -(l_1 + l_2) of x minus the mean of l_1 + l_2 over the permuted samples. Noise that no
    bound finds unlikely has the gradient 0.

    Args:
        x: samples (B, *shape), N divisible by 4.
        permutations: (B, P, N), int64; P may be 0.
    """
    return torch.stack(
        [_prno(sample.flatten().double(), several) for sample, several in zip(x, permutations, strict=True)]
    )


def _prno(x: Tensor, permutations: Tensor) -> Tensor:
    bounds = _Concentration.apply(torch.cat([x[None], _permuted(x, permutations)]))
    return -bounds[0] - bounds[1:].mean() if len(permutations) else -bounds[0]


def _permuted(x: Tensor, permutations: Tensor) -> Tensor:
    """Return x (N,) in several orders, (P, N)."""
    return x.expand_as(permutations).gather(1, permutations)  # the backward of an index sorts it on a GPU


class _Concentration(torch.autograd.Function):
    """l_1 + l_2 of samples (P, N), float64, see `prno`, with the gradient in closed form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows = x.unflatten(1, (-1, ROW))  # [P, m, k]
        m = rows.shape[1]
        center = rows.mean(dim=1, keepdim=True)
        values, vectors = torch.linalg.eigh(
            rows.mT @ rows / m - torch.eye(ROW, dtype=x.dtype, device=x.device)
        )
        largest = values.abs().argmax(dim=1)[:, None, None]
        value = values[:, None].gather(2, largest)
        vector = vectors.gather(2, largest.expand(-1, ROW, 1))
        root = torch.sqrt(1 + value.abs())
        excess = (root - 1 - math.sqrt(ROW / m)).clamp(min=0)
        of_center = -m / (2 * ROW) * center.square().sum(dim=2, keepdim=True)
        of_deviation = -m / 2 * excess.square()
        least = -math.log(2)
        along = -excess / root * value.sign() * (of_deviation < least)
        gradient = center * (of_center < least) / -ROW + (rows @ vector) @ (along * vector.mT)
        ctx.save_for_backward(gradient.flatten(1))
        return (of_center.clamp(max=least) + of_deviation.clamp(max=least)).flatten()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None]


def mpgr(x: Tensor, permutations: Tensor) -> Tensor:
    """Return |mean x| + |rms x - 1| + 25 * (deviation of the spectrum of permuted x) (MPGR).

    The deviation is the mean over blocks of 16 coefficients of | mean |X_k| - sqrt(pi) / 2 |, in the compact
    complex spectrum (`python_ref.to_wgnc_spectrum`). About 0.0924 for noise.

    Args:
        x: samples (B, *shape), N divisible by 32.
        permutations: (B, P, N), int64, P at least 1. The deviation is their mean.
    """
    return torch.stack(
        [_mpgr(sample.flatten().double(), several) for sample, several in zip(x, permutations, strict=True)]
    )


def _mpgr(x: Tensor, permutations: Tensor) -> Tensor:
    moments = x.mean().abs() + (x.square().mean().sqrt() - 1).abs()
    return moments + 25 * spectral_deviation(_permuted(x, permutations)).mean()


def spectral_deviation(x: Tensor) -> Tensor:
    """Return the deviation of the spectrum of samples (P, N) from that of noise, (P,), see `mpgr`."""
    spectrum = pack_spectrum(torch.fft.rfft(x, norm="ortho"))  # faster than the defined FFT
    magnitudes = spectrum.abs().unflatten(1, (-1, BLOCK))
    return (magnitudes.mean(dim=2) - _RAYLEIGH_MEAN).abs().mean(dim=1)


def gradient_of(regularizer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the gradients of a regularizer (B, *shape) -> (B,) at x, of x's shape and dtype."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(regularizer(x).sum(), x)[0]


_AT_ONCE = 2**24
"""Values of the permuted copies of a sample that are in memory at once."""


def within_bounds(batch: Batch, x: Tensor, gradient: Tensor, weight: float, shuffles: int) -> Tensor:
    """Return gradient - weight * grad R at noise x (B, *shape); R is `prno`, with fresh permutations."""
    if not weight:
        return gradient
    size = x[0].numel()
    at_once = max(1, _AT_ONCE // size)
    for count in [min(at_once, shuffles - start) for start in range(0, shuffles, at_once)] or [0]:
        permutations = batch.permutations(count, size)
        share = count / shuffles if shuffles else 1.0
        gradient = gradient - weight * share * gradient_of(lambda x: prno(x, permutations), x)  # noqa: B023
    return gradient
