"""Inputs of the benchmarks."""

import torch
from torch import Tensor

FLUX = (16, 64, 64)
WAN = (336, 60, 104)


def gaussian(shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of seed 0."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def structured(shape: tuple[int, ...]) -> Tensor:
    """Field (C, H, W) with amplitude spectrum 1/k in every channel, variance 1."""
    _, height, width = shape
    ky = torch.fft.fftfreq(height)[:, None] * height
    kx = torch.fft.fftfreq(width)[None, :] * width
    k = (ky**2 + kx**2).sqrt()
    k[0, 0] = 1
    field = torch.fft.ifft2(torch.fft.fft2(gaussian(shape)) / k).real
    return field / field.std()
