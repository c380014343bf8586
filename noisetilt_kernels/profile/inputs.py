"""Inputs of measurements: noise and structured latents."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import Sample

FLUX = (16, 64, 64)
"""Shape (C, H, W) of a latent of FLUX.1 at 512 x 512 pixels."""
INPUTS = ("1/k", "noise")
"""Names of the inputs: fields with amplitude spectrum 1/k, like images, and standard normal noise."""


def gaussian(shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Standard normal noise."""
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def power_law(beta: float, shape: Sequence[int] = FLUX, seed: int = 0) -> Tensor:
    """Field (C, H, W) with amplitude spectrum 1/k^beta in every channel, float64, variance 1."""
    _, h, w = shape
    k = torch.hypot(torch.fft.fftfreq(h)[:, None] * h, torch.fft.fftfreq(w) * w).double()
    k[0, 0] = 1
    field = torch.fft.ifft2(torch.fft.fft2(gaussian(shape, torch.float64, seed)) / k**beta).real
    return field / field.std()


def batch_of(name: str, sample: Sample, batch: int) -> Tensor:
    """Return an input of `INPUTS`, float32 (B, C, H, W), with another seed for each sample."""
    shape = sample[:3]
    if name == "noise":
        return torch.stack([gaussian(shape, seed=seed) for seed in range(batch)])
    return torch.stack([power_law(1.0, shape, seed).float() for seed in range(batch)])
