"""Square root and summation with defined rounding, which PyTorch does not guarantee."""

import math

import torch
from torch import Tensor

from . import special

SQRT_HALF = math.sqrt(0.5)


def sqrt_rn(x: Tensor) -> Tensor:
    """Square root of each element, float32 or float64, rounded to nearest.

    `torch.sqrt` on the CPU is off by one unit in the last place for many float32 values. Float32 is computed
    in float64 and rounded: double rounding is harmless here (53 >= 2*24 + 2 bits). Float64 is computed by
    `special.sqrt`.
    """
    if x.dtype == torch.float32:
        return x.double().sqrt().float()
    return special.sqrt(x.detach().cpu()).to(x.device)


def tree_sum(terms: Tensor) -> Tensor:
    """Sum over the last dimension, `(..., K) -> (...,)`, in a fixed order (DESIGN section 9).

    The terms are zero-padded to a power of two. Then the upper half is added to the lower half,
    `v[i] += v[i + h]`, for h = K/2, ..., 2, 1. A warp's xor shuffle has the same order.
    """
    count = terms.shape[-1]
    half = 1 << max(count - 1, 0).bit_length()
    v = torch.nn.functional.pad(terms, (0, half - count))
    while half > 1:
        half //= 2
        v = v[..., :half] + v[..., half : 2 * half]
    return v[..., 0]
