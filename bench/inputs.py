"""Inputs of the benchmarks and of the tests: noise and structured latents."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from noisetilt_kernels.profile.inputs import FLUX, gaussian, power_law

__all__ = ["FLUX", "STRUCTURED", "WAN", "gaussian", "power_law", "structured"]

WAN = (336, 60, 104)


def structured(shape: Sequence[int]) -> Tensor:
    """Field (C, H, W) with amplitude spectrum 1/k in every channel, float32."""
    return power_law(1.0, shape).float()


def _sinusoids(seed: int) -> Tensor:
    c, h, w = FLUX
    y, x = torch.arange(h, dtype=torch.float64)[:, None] / h, torch.arange(w, dtype=torch.float64) / w
    waves = [torch.sin(2 * math.pi * ((3 + k % 5) * x + (2 + k % 3) * y) + k) for k in range(c)]
    return torch.stack(waves) + 0.3 * gaussian(FLUX, torch.float64, seed)


def _repeated_channel(seed: int) -> Tensor:
    return gaussian((1, *FLUX[1:]), torch.float64, seed).repeat(FLUX[0], 1, 1)


def _sparse_spikes(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    there = torch.rand(FLUX, generator=generator) < 0.001
    return there * torch.randn(FLUX, dtype=torch.float64, generator=generator)


STRUCTURED: dict[str, Callable[[int], Tensor]] = {
    "1/k^0.5": lambda seed: power_law(0.5, seed=seed),
    "1/k": lambda seed: power_law(1.0, seed=seed),
    "1/k^1.5": lambda seed: power_law(1.5, seed=seed),
    "1/k^2": lambda seed: power_law(2.0, seed=seed),
    "sinusoids": _sinusoids,
    "repeated channel": _repeated_channel,
    "sparse spikes": _sparse_spikes,
}
"""Functions of a seed that make a structured latent 16x64x64, float64."""
