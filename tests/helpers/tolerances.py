"""Tolerances of comparisons that do not require equal bits: one number per dtype."""

import torch
from torch import Tensor

FFT = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-5, torch.float64: 1e-12}
"""Difference of two FFTs of the same input, relative to the norm."""

ORTHOGONAL = {torch.float32: 1e-6, torch.float64: 1e-14}
"""Change of the norm, and error of a round trip, of orthogonal transforms, relative to the norm."""

BLOCK_NORM = {torch.complex64: 1e-6, torch.complex128: 1e-13}
"""Error of l1 norm and energy of a projected WGNC block, relative to their targets."""

ROUNDED_ONCE = {
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
}
"""Relative error of one rounding: half a unit in the last place."""


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return |actual - expected| / |expected| with Euclidean norms of whole tensors, in double precision."""
    wide = torch.complex128 if expected.is_complex() else torch.float64
    actual, expected = actual.to(wide), expected.to(wide)
    return float((actual - expected).norm() / expected.norm())


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine (B,) of corresponding samples of two batches (B, ...), in float64."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))
