"""Arithmetic with defined rounding: each operation rounds to nearest, once (DESIGN section 9)."""

import triton
import triton.language as tl


@triton.jit
def div_rn(x, y):
    """Divide x by y, float32 or float64."""
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
    """Constant rounded from float64 to the dtype. Triton may round a Python number to float32 first."""
    return tl.full([1], value, dtype)


@triton.jit
def is_finite(x):
    """Return True where x is neither NaN nor infinite."""
    return tl.abs(x) < float("inf")


@triton.jit
def pairs(x, DISTANCE: tl.constexpr):
    """Split a vector x in two: the elements with bit DISTANCE (a power of two) of their index 0, and 1."""
    HALF: tl.constexpr = x.numel // 2
    return tl.split(tl.permute(tl.reshape(x, [HALF // DISTANCE, 2, DISTANCE]), (0, 2, 1)))


@triton.jit
def unpaired(first, second, DISTANCE: tl.constexpr):
    """Inverse of `pairs`, for tensors of any shape."""
    HALF: tl.constexpr = first.numel
    first = tl.reshape(first, [HALF // DISTANCE, DISTANCE])
    second = tl.reshape(second, [HALF // DISTANCE, DISTANCE])
    return tl.reshape(tl.permute(tl.join(first, second), (0, 2, 1)), [2 * HALF])
