"""Bitwise comparison of tensors."""

import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bit_patterns(x: Tensor) -> Tensor:
    """Return the bits of x as integers. All NaN become the same NaN. Complex x gets a last dimension of 2."""
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    x = x.detach().contiguous()
    if x.is_floating_point():
        x = torch.where(x.isnan(), torch.full_like(x, torch.nan), x)
    return x.view(_INTEGERS[x.element_size()])


def assert_same_bits(actual: Tensor, expected: Tensor, context: str = "") -> None:
    """Fail unless the tensors have the same shape, dtype and bits. The message gives the first difference.

    Here -0 differs from +0, and a NaN equals any NaN. `torch.equal` does the opposite.
    """
    prefix = f"{context}: " if context else ""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise AssertionError(
            f"{prefix}{actual.dtype} {tuple(actual.shape)} is not {expected.dtype} {tuple(expected.shape)}"
        )
    differs = bit_patterns(actual) != bit_patterns(expected)
    if actual.is_complex():
        differs = differs.any(dim=-1)
    count = int(differs.sum())
    if count:
        first = tuple(differs.nonzero()[0].tolist())
        raise AssertionError(
            f"{prefix}{count} of {differs.numel()} values differ, the first at {first}: "
            f"{actual[first].item()!r} is not {expected[first].item()!r}"
        )
