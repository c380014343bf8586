"""The operators as typed Python functions, and the conversion of FLUX's packed latents.

Each function calls the operator of the same name in `torch.ops.noisetilt`. All of them work under
`torch.compile(fullgraph=True)`. An argument of the wrong type is a TypeError, also a sparse, nested or
MKL-DNN tensor.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._ops import ops as _ops
from .checks import check_integer, shown
from .config import DEFAULT_ALPHA, WhiteningConfig, check_alpha, flatten
from .registration import NOT_DENSE, public_name

# PyTorch's names of the types in a schema
_WANTED = {
    "Tensor": "a torch.Tensor",
    "List[int]": "a sequence of integers",
    "int": "an integer of at most 64 bits",
    "float": "a number",
    "bool": "True or False",
    "str": "a string",
}
_REJECTED = re.compile(r"Expected a value of type '(.+?)' for argument '(\w+)'")


def _call(operator: Any, *args: Any) -> Tensor:
    """Call an operator. If PyTorch rejects an argument, raise TypeError with one sentence about it."""
    try:
        return operator(*args)
    except (RuntimeError, AttributeError) as error:
        schema = operator.default._schema
        values = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)}
        rejected = _REJECTED.search(str(error))
        if rejected is not None:
            wanted, name = rejected.groups()
        else:  # PyTorch takes None for a tensor
            wanted, name = "Tensor", next((name for name, value in values.items() if value is None), None)
            if name is None:
                raise
        function = public_name(schema.name.rpartition("::")[2])
    raise TypeError(f"{function}: {name} must be {_WANTED[wanted]}, got {shown(values[name])}")


def check_tensor(function: str, name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be {_WANTED['Tensor']}, got {shown(value)}")
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(f"{function}: {NOT_DENSE}")


def whiten(x: Tensor, config: str | WhiteningConfig = "auto", *, alpha: float | None = None) -> Tensor:
    """Apply the whitening operator W to every sample (DESIGN section 5; NoiseTilt section 4).

    W projects a direction onto typical Gaussian noise. The scale of x does not matter. W has no gradient.
    A shape that looks like FLUX's packed latents, or like one video for the preset "wan", is a warning.

    Args:
        x: samples (N,), (B,N), (C,H,W), (B,C,H,W) or (B,C,F,H,W), float16, bfloat16, float32 or float64.
            Packed latents, (B,1024,64) for FLUX.1, must be unpacked first: see `unpack_latents`.
        config: name of a preset, "flux", "wan" or "auto" (chosen by shape, see `preset`), or a
            `WhiteningConfig`.
        alpha: significance level, 1e-100 to 0.999999. Default: 1e-3 for a preset, `config.alpha` for a
            `WhiteningConfig`.

    Returns:
        Tensor of x's shape and dtype, contiguous. Each sample has the norm of typical noise, about sqrt(N). A
        sample with NaN or inf becomes NaN throughout.

    Raises:
        ValueError: the configuration does not fit the shape of x, the preset is unknown, or alpha is out of
            range.
        TypeError: x is not a floating-point tensor, or config is neither a name nor a `WhiteningConfig`.
    """
    if isinstance(config, str):
        return _call(_ops.whiten, x, config, DEFAULT_ALPHA if alpha is None else alpha)
    if not isinstance(config, WhiteningConfig):
        raise TypeError(f"whiten: config must be a preset's name or a WhiteningConfig, got {shown(config)}")
    chunk_sizes, tile_sizes, mixing, config_alpha = flatten(config)
    if alpha is not None:
        check_alpha("whiten", alpha)
    return _call(
        _ops._whiten_config, x, chunk_sizes, tile_sizes, mixing, config_alpha if alpha is None else alpha
    )


def project_2os(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Project every sample onto a table of two-level order statistics: sort, clip, unsort (DESIGN section 2).

    This operator has no gradient.

    Args:
        x: samples (N,) or (B,N), float16, bfloat16, float32 or float64. N = M*D: M chunks of D values each.
        lower, upper: table (M, D) on x's device, float64 for float64 x and float32 otherwise. See
            `confidence_table`.

    Returns:
        Tensor of x's shape and dtype. The value of rank j in its chunk and rank r across chunks is clipped to
        [lower[r, j], upper[r, j]]. NaN sorts last and is not clipped.

    Raises:
        ValueError: the table does not fit x, contains NaN, or has a lower bound above its upper bound.
        TypeError: a tensor has the wrong dtype.
    """
    return _call(_ops.project_2os, x, lower, upper)


def project_tile_stats(
    x: Tensor, tile: Sequence[int], chunk_sizes: Sequence[int], alpha: float = DEFAULT_ALPHA
) -> Tensor:
    """Project mean and centred energy of every tile onto their confidence tables (DESIGN section 3).

    This operator has no gradient.

    Args:
        x: samples (N,), (B,N), (C,H,W), (B,C,H,W) or (B,C,F,H,W), float16, bfloat16, float32 or float64.
        tile: tile size (th, tw) of at least 2 values, up to (H, W). For (N,) and (B,N) the plane is 1 x N. A
            side that the tile does not divide is cut into pieces of nearly this length, which differ by at
            most one.
        chunk_sizes: chunk sizes of 2OS, for the tiles of each size. Chunk sizes that do not divide their
            number are skipped.
        alpha: significance level, 1e-100 to 0.999999.

    Returns:
        Tensor of x's shape and dtype. A tile with NaN or inf becomes NaN.

    Raises:
        ValueError: the tile does not fit into (H, W), chunk_sizes is empty, or alpha is out of range.
        TypeError: x is not a floating-point tensor.
    """
    return _call(_ops.project_tile_stats, x, tile, chunk_sizes, alpha)


def project_wgnc(x: Tensor, block_size: int = 16) -> Tensor:
    """Project every sample onto the white Gaussian noise constraints (DESIGN section 6; WGNC section 4).

    Each row is one sample. To project a tensor of any shape as one sample, see `noisetilt_kernels.drop_in`.
    This operator has no gradient.

    Args:
        x: samples (N,) or (B,N), float16, bfloat16, float32 or float64, N divisible by 2*block_size.
        block_size: number of complex coefficients per block, at least 2.

    Returns:
        Tensor of x's shape and dtype.

    Raises:
        ValueError: x is neither (N,) nor (B,N), or N is not divisible by 2*block_size.
        TypeError: x is not a floating-point tensor.
    """
    return _call(_ops.project_wgnc, x, block_size)


def project_wgnc_blocks(y: Tensor, block_size: int = 16) -> Tensor:
    """Project every block of complex coefficients onto its expected l1 and l2 norms (DESIGN section 6).

    This is `project_wgnc` without the FFTs. This operator has no gradient.

    Args:
        y: compact complex spectra (n,) or (B,n), complex64 or complex128, n divisible by block_size.
        block_size: number of complex coefficients per block, at least 2.

    Returns:
        Tensor of y's shape and dtype. A block with NaN or inf becomes NaN.

    Raises:
        ValueError: y is neither (n,) nor (B,n), or n is not divisible by block_size.
        TypeError: y is not a complex tensor.
    """
    return _call(_ops.project_wgnc_blocks, y, block_size)


def compact_fourier(x: Tensor, inverse: bool = False) -> Tensor:
    """Apply the compact orthogonal Fourier transform to every sample (DESIGN section 4; NoiseTilt eq. 112).

    The operator is differentiable, in forward mode too.

    Args:
        x: samples (N,) or (B,N), float16, bfloat16, float32 or float64, N even.
        inverse: apply the inverse transform instead.

    Returns:
        Tensor of x's shape and dtype: [X_0, X_{N/2}, sqrt2 Re X_1.., sqrt2 Im X_1..] with X = rfft(x,
        norm="ortho").

    Raises:
        ValueError: x is neither (N,) nor (B,N), or N is odd.
        TypeError: x is not a floating-point tensor.
    """
    return _call(_ops.compact_fourier, x, inverse)


def butterfly(x: Tensor, tile: Sequence[int], steps: int, inverse: bool = False) -> Tensor:
    """Apply butterfly steps to every tile: sums and differences of neighbours (DESIGN section 4; NoiseTilt
    eq. 113).

    For a tile of 2^n values, n steps are the orthogonal Walsh-Hadamard transform. The operator is
    differentiable, in forward mode too.

    Args:
        x: samples (N,), (B,N), (C,H,W), (B,C,H,W) or (B,C,F,H,W), float16, bfloat16, float32 or float64.
        tile: tile size (th, tw) of an even number of values, up to (H, W). For (N,) and (B,N) the plane is 1
            x N. A plane that the tile does not divide is cut into tiles of an even number of values: the
            width is cut in pairs, or the height if only the width is odd. If H and W are odd, the last column
            stays as it is (if W is 1, the last row).
        steps: number of steps, 0 to 1024.
        inverse: apply the inverse steps instead.

    Returns:
        Tensor of x's shape and dtype.

    Raises:
        ValueError: the tile does not fit into (H, W) or has an odd number of values, or steps is out of
            range.
        TypeError: x is not a floating-point tensor.
    """
    return _call(_ops.butterfly, x, tile, steps, inverse)


def hadamard_transform(x: Tensor, scale: float = 1.0) -> Tensor:
    """Apply the Walsh-Hadamard transform, natural order, to the last dimension and multiply by `scale`.

    Same signature as `fast_hadamard_transform.hadamard_transform`, on any device. The operator is
    differentiable, in forward mode too.

    Args:
        x: (..., dim), float16, bfloat16, float32 or float64. A dim that is not a power of two is zero-padded
            to the next power of two, transformed, and cut to dim.
        scale: factor of the result. If dim is a power of two, dim ** -0.5 makes the transform orthogonal.

    Returns:
        Tensor of x's shape and dtype. Float16 and bfloat16 are computed in float32 and rounded once.

    Raises:
        ValueError: x has no last dimension, or an empty one.
        TypeError: x is not a floating-point tensor.
    """
    return _call(_ops.hadamard_transform, x, scale)


def pack_latents(x: Tensor) -> Tensor:
    """Pack latents (B, C, H, W) of any dtype into FLUX's tokens (B, H/2 * W/2, 4C).

    A token is a 2x2 patch, channel first.

    Raises:
        ValueError: x is not (B, C, H, W) with H and W even.
        TypeError: x is not a dense tensor.
    """
    check_tensor("pack_latents", "x", x)
    if x.dim() != 4 or x.shape[2] % 2 or x.shape[3] % 2:
        raise ValueError(f"pack_latents: x must be (B, C, H, W) with H and W even, got {tuple(x.shape)}")
    patches = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # [B, C, H/2, 2, W/2, 2]
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack_latents(x: Tensor, height: int, width: int) -> Tensor:
    """Unpack FLUX's tokens (B, H/2 * W/2, 4C) into latents (B, C, H, W): the inverse of `pack_latents`.

    Args:
        x: tokens (B, H/2 * W/2, 4C) of any dtype.
        height, width: H and W of the latents. For FLUX they are 1/8 of the image's height and width.

    Raises:
        ValueError: the number of tokens is not H/2 * W/2, their length is not divisible by 4, or H or W is
            odd.
        TypeError: x is not a dense tensor, or height or width is not an integer.
    """
    check_tensor("unpack_latents", "x", x)
    check_integer("unpack_latents", "height", height, 2)
    check_integer("unpack_latents", "width", width, 2)
    if x.dim() != 3 or x.shape[2] % 4 or height % 2 or width % 2 or 4 * x.shape[1] != height * width:
        raise ValueError(
            f"unpack_latents: x must be (B, H/2 * W/2, 4C) with H and W even, "
            f"got {tuple(x.shape)} for {height}x{width}"
        )
    patches = x.unflatten(1, (height // 2, width // 2)).unflatten(3, (-1, 2, 2))  # [B, H/2, W/2, C, 2, 2]
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
