"""Inputs of the benchmarks."""

import torch
from torch import Tensor

FLUX = (16, 64, 64)
WAN = (336, 60, 104)


def gaussian(shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of seed 0."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def structured(shape: tuple[int, ...]) -> Tensor:
    """Fields with amplitude spectrum 1/k in every channel (C, H, W), variance 1."""
    return one_over_k(gaussian(shape))


def one_over_k(noise: Tensor, power: float = 1.0) -> Tensor:
    """Fields (C, H, W) with amplitude spectrum 1/k^power, made from noise of that shape; variance 1."""
    _, height, width = noise.shape
    ky = torch.fft.fftfreq(height)[:, None] * height
    kx = torch.fft.fftfreq(width)[None, :] * width
    k = (ky**2 + kx**2).sqrt()
    k[0, 0] = 1
    field = torch.fft.ifft2(torch.fft.fft2(noise) / k**power).real
    return field / field.std()
