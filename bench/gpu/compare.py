"""Comparison of results with the reference."""

import torch
from bits import assert_same_bits
from torch import Tensor

ROUNDED = 1e-12
"""Largest difference of float64 results from the reference, relative to the norm (DESIGN section 9)."""


def assert_agrees(actual: Tensor, expected: Tensor, context: str = "") -> None:
    """Assert equal bits. Finite float64 values need to agree only to 1e-12 of the norm."""
    actual = actual.cpu()
    if expected.dtype not in (torch.float64, torch.complex128):
        return assert_same_bits(actual, expected, context)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), context
    if expected.is_complex():
        actual, expected = torch.view_as_real(actual), torch.view_as_real(expected)
    finite = expected.isfinite()
    assert_same_bits(actual.masked_fill(finite, 0), expected.masked_fill(finite, 0), context)
    actual, expected = actual[finite], expected[finite]
    scale = float(expected.abs().max()) if len(expected) else 0.0
    if scale == 0.0:
        return assert_same_bits(actual, expected, context)
    error = float(((actual - expected) / scale).norm() / (expected / scale).norm())
    assert error <= ROUNDED, f"{context}: relative error {error}"
    return None
