"""Replacements for functions of other packages, with their names and semantics.

Change one import:

    from noisetilt_kernels.drop_in import hadamard_transform  # was: from fast_hadamard_transform import ...
    from noisetilt_kernels.drop_in import project_wgnc, project_wgnc_batched  # was: the WGNC authors'
"""

from torch import Tensor

from .functional import check_tensor, hadamard_transform
from .functional import project_wgnc as _project_wgnc

__all__ = ["hadamard_transform", "project_wgnc", "project_wgnc_batched"]


def project_wgnc(y: Tensor, block_size: int = 16) -> Tensor:
    """Project a tensor of any shape, taken as ONE sample, onto the white Gaussian noise constraints (DESIGN
    section 6).

    Same semantics as the WGNC authors' function of this name: a batch is one sample too.
    `noisetilt_kernels.project_wgnc` instead takes each row as a sample.

    Args:
        y: tensor of N values, float16, bfloat16, float32 or float64, N divisible by 2*block_size.
        block_size: number of complex coefficients per block, at least 2.

    Returns:
        Tensor of y's shape and dtype.

    Raises:
        ValueError: N is not divisible by 2*block_size.
        TypeError: y is not a floating-point tensor.
    """
    check_tensor("project_wgnc", "y", y)
    return _project_wgnc(y.reshape(-1), block_size).reshape(y.shape)


def project_wgnc_batched(x: Tensor, block_size: int = 16) -> Tensor:
    """Project every sample of a batch onto the white Gaussian noise constraints (DESIGN section 6).

    Same semantics as the WGNC authors' function of this name.

    Args:
        x: samples (B, C, H, W), float16, bfloat16, float32 or float64, C*H*W divisible by 2*block_size.
            Other shapes (B, ...) work too.
        block_size: number of complex coefficients per block, at least 2.

    Returns:
        Tensor of x's shape and dtype.

    Raises:
        ValueError: x has no batch dimension, or C*H*W is not divisible by 2*block_size.
        TypeError: x is not a floating-point tensor.
    """
    check_tensor("project_wgnc_batched", "x", x)
    if x.dim() < 2:
        raise ValueError(f"project_wgnc_batched: x must be a batch (B, C, H, W), got {tuple(x.shape)}")
    return _project_wgnc(x.flatten(1), block_size).reshape(x.shape)
