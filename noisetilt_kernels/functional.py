"""Functions over the operators: configuration objects, drop-in replacements, latent layouts."""

import torch
from torch import Tensor

from .config import WhiteningConfig
from .ops import flatten_config


def whiten(x: Tensor, config: WhiteningConfig | None = None) -> Tensor:
    """The whitening operator W on every sample (DESIGN section 5; NoiseTilt section 4).

    Args:
        x: samples (N,), (B,N), (C,H,W), (B,C,H,W) or (B,C,F,H,W); float16, bfloat16, float32 or float64. FLUX's
            packed latents (B,1024,64) are not samples: see `unpack_latents`.
        config: what to project onto; None chooses by shape (preset "auto").

    Returns:
        Tensor of x's shape and dtype, contiguous. It does not require x to have any particular scale, and has
        the norm of typical noise, about sqrt(N). A sample with NaN or inf is NaN throughout.

    Raises:
        ValueError, TypeError: the configuration does not fit x, or x is not a floating-point tensor of such a shape.
    """
    if config is None:
        return torch.ops.noisetilt.whiten(x)
    if not isinstance(config, WhiteningConfig):
        raise TypeError(
            f"whiten: config must be a WhiteningConfig, got {config!r}; nt.preset(name) makes one"
        )
    return torch.ops.noisetilt.whiten_config(x, *flatten_config(config))


def project_wgnc(y: Tensor, block_size: int = 16) -> Tensor:
    """Project a tensor of any shape, taken as one sample, onto the white Gaussian noise constraints (DESIGN section 6).

    A drop-in for the function of this name by the WGNC authors. For a batch use `torch.ops.noisetilt.project_wgnc`.

    Args:
        y: float16, bfloat16, float32 or float64 tensor of N values, N divisible by 2*block_size.
        block_size: complex coefficients to a block, at least 2.

    Returns:
        Tensor of y's shape and dtype.

    Raises:
        ValueError, TypeError: N is not divisible, or y is not a floating-point tensor.
    """
    return torch.ops.noisetilt.project_wgnc(y.reshape(-1), block_size).reshape(y.shape)


def hadamard_transform(x: Tensor, scale: float = 1.0) -> Tensor:
    """Walsh-Hadamard transform of the last dimension, natural order, times `scale`; differentiable.

    A drop-in for `fast_hadamard_transform.hadamard_transform`, on any device.

    Args:
        x: (..., dim); float16, bfloat16, float32 or float64. A dim that is not a power of two is zero-padded to
            the next one, transformed, and cut to dim.
        scale: factor of the result; dim ** -0.5 makes the transform orthogonal where dim is a power of two.

    Returns:
        Tensor of x's shape and dtype. Float16 and bfloat16 are computed in float32 and rounded once.

    Raises:
        ValueError, TypeError: x has no last dimension, or is not a floating-point tensor.
    """
    return torch.ops.noisetilt.hadamard_transform(x, scale)


def pack_latents(x: Tensor) -> Tensor:
    """FLUX's packing: latents (B, C, H, W) to tokens (B, H/2 * W/2, 4C), 2x2 patches channel first.

    Raises:
        ValueError: x is not (B, C, H, W) with H and W even.
    """
    if x.dim() != 4 or x.shape[2] % 2 or x.shape[3] % 2:
        raise ValueError(f"pack_latents: x must be (B, C, H, W) with H and W even, got {tuple(x.shape)}")
    patches = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # [B, C, H/2, 2, W/2, 2]
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack_latents(x: Tensor, height: int, width: int) -> Tensor:
    """Inverse of `pack_latents`: tokens (B, H/2 * W/2, 4C) to latents (B, C, H, W) of height H and width W.

    Raises:
        ValueError: the tokens do not fill H x W.
    """
    if x.dim() != 3 or x.shape[2] % 4 or height % 2 or width % 2 or 4 * x.shape[1] != height * width:
        raise ValueError(
            f"unpack_latents: x must be (B, H/2 * W/2, 4C) with H and W even, got {tuple(x.shape)} for {height}x{width}"
        )
    patches = x.unflatten(1, (height // 2, width // 2)).unflatten(3, (-1, 2, 2))  # [B, H/2, W/2, C, 2, 2]
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
