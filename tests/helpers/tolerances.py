"""How far results may be from each other where equality of bits is not demanded: one number per dtype."""

import torch
from torch import Tensor

FFT = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-5, torch.float64: 1e-12}
"""An FFT stage against another FFT of the same input, relative to the norm."""

ORTHOGONAL = {torch.float32: 1e-6, torch.float64: 1e-14}
"""Norm preservation and round trips of the orthogonal transforms, relative to the norm."""

BLOCK_NORM = {torch.complex64: 1e-6, torch.complex128: 1e-13}
"""The l1 norm and the energy of a projected WGNC block, relative to their targets."""

ROUNDED_ONCE = {
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
}
"""Half a unit in the last place: the relative error of one rounding."""


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected|, Euclidean norms over everything, in float64 or complex128."""
    wide = torch.complex128 if expected.is_complex() else torch.float64
    actual, expected = actual.to(wide), expected.to(wide)
    return float((actual - expected).norm() / expected.norm())


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine between corresponding samples of two batches (B, ...), in float64."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))
