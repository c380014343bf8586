"""Arithmetic whose rounding Triton leaves open unless told: each operation here rounds to nearest, once (DESIGN 9)."""

import triton
import triton.language as tl


@triton.jit
def div_rn(x, y):
    """x / y, float32 or float64."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def sqrt_rn(x):
    """Square root, float32 or float64."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def rounded(value: tl.constexpr, dtype: tl.constexpr):
    """A number, rounded to the type from float64. As a plain number Triton might round it to float32 on the way."""
    return tl.full([1], value, dtype)


@triton.jit
def is_finite(x):
    """Whether values are neither NaN nor infinite."""
    return tl.abs(x) < float("inf")


@triton.jit
def pairs(x, DISTANCE: tl.constexpr):
    """The elements of x, one dimension, whose index has a 0 in the place of DISTANCE (a power of two), and those that
    have a 1 there instead."""
    HALF: tl.constexpr = x.numel // 2
    return tl.split(tl.permute(tl.reshape(x, [HALF // DISTANCE, 2, DISTANCE]), (0, 2, 1)))


@triton.jit
def unpaired(first, second, DISTANCE: tl.constexpr):
    """Inverse of `pairs`."""
    SIZE: tl.constexpr = first.numel * 2
    return tl.reshape(tl.permute(tl.join(first, second), (0, 2, 1)), [SIZE])
