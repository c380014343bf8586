"""Elementwise functions of float64 tensors on the CPU, by numpy and scipy.

PyTorch lacks them or does not define their rounding. In a kernel for Hugging Face's Kernel Hub another module
takes the place of this one, because such a kernel imports torch only (hub/kernel/python_ref/special.py).
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor


def sqrt(x: Tensor) -> Tensor:
    """Square root, rounded to nearest. numpy uses the processor's."""
    with np.errstate(invalid="ignore"):  # the root of a negative number is NaN, without a warning
        return torch.from_numpy(np.sqrt(x.numpy()))


def cos(x: Tensor) -> Tensor:
    """Cosine of an angle from 0 to pi/4."""
    return torch.from_numpy(np.cos(x.numpy()))


def sin(x: Tensor) -> Tensor:
    """Sine of an angle from 0 to pi/4."""
    return torch.from_numpy(np.sin(x.numpy()))


def normal_quantile(p: Tensor) -> Tensor:
    """Quantile of N(0, 1) for the lower-tail probability `p`."""
    return _apply(_special().ndtri, p)


def beta_quantile(a: Tensor, b: Tensor, p: Tensor | float) -> Tensor:
    """Quantile of Beta(a, b) for the lower-tail probability `p`."""
    return _apply(_special().betaincinv, a, b, p)


def gamma_quantile(a: float, p: Tensor) -> Tensor:
    """Quantile of Gamma(a, 1) for the lower-tail probability `p`."""
    return _apply(_special().gammaincinv, a, p)


def gamma_upper_quantile(a: float, p: Tensor) -> Tensor:
    """Quantile of Gamma(a, 1) for the upper-tail probability `p`."""
    return _apply(_special().gammainccinv, a, p)


def _special() -> ModuleType:
    """Return scipy.special, which takes a quarter of a second to import. Only new tables need it."""
    from scipy import special

    return special  # type: ignore[no-any-return]


def _apply(function: Callable[..., Any], *args: Tensor | float) -> Tensor:
    arrays = [arg.numpy() if isinstance(arg, Tensor) else arg for arg in args]
    return torch.from_numpy(function(*arrays))
