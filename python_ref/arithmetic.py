"""The two operations whose rounding PyTorch does not fix: square root and summation."""

import numpy as np
import torch
from torch import Tensor


def sqrt_rn(x: Tensor) -> Tensor:
    """Square root rounded to nearest, elementwise, float32 or float64.

    `torch.sqrt` on the CPU is one unit off in the last place for many float32 values. Float32 goes
    through float64, where double rounding is harmless (53 >= 2*24 + 2 bits); float64 goes through
    numpy, which uses the processor's square root.
    """
    if x.dtype == torch.float32:
        return x.double().sqrt().float()
    with np.errstate(invalid="ignore"):  # the root of a negative number is NaN, and no warning
        return torch.from_numpy(np.sqrt(x.detach().cpu().numpy())).to(x.device)


def tree_sum(terms: Tensor) -> Tensor:
    """Sum over the last dimension, `(..., K) -> (...,)`, in one defined order.

    The terms are zero-padded to a power of two and halved: `v[i] += v[i + h]` for h = K/2, ..., 1,
    which is also the order of a warp's xor shuffle.
    """
    count = terms.shape[-1]
    half = 1 << max(count - 1, 0).bit_length()
    v = torch.nn.functional.pad(terms, (0, half - count))
    while half > 1:
        half //= 2
        v = v[..., :half] + v[..., half : 2 * half]
    return v[..., 0]
