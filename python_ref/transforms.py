"""Orthogonal transforms (DESIGN section 4): butterfly mixing and Walsh-Hadamard."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .arithmetic import SQRT_HALF
from .tile_stats import merge_tiles, split_tiles


def butterfly(x: Tensor, tile: Sequence[int], steps: int) -> Tensor:
    """Apply `steps` butterfly steps to every tile of samples (B, C, H, W), K = th*tw even (DESIGN section 4).

    One step maps a tile, flattened row-major, to (paper eq. 113)

        y[i] = (x[2i] + x[2i+1]) / sqrt2,    y[K/2+i] = (x[2i] - x[2i+1]) / sqrt2,    i < K/2.

    For K = 2^n, n steps are the Walsh-Hadamard transform H_K / sqrt(K) in natural order.
    """
    v = split_tiles(x, tile)
    for _ in range(steps):
        even, odd = v[..., 0::2], v[..., 1::2]
        v = torch.cat([(even + odd) * SQRT_HALF, (even - odd) * SQRT_HALF], dim=-1)
    return merge_tiles(v, tile)


def butterfly_inverse(y: Tensor, tile: Sequence[int], steps: int) -> Tensor:
    """Inverse (and transpose) of `butterfly`."""
    v = split_tiles(y, tile)
    for _ in range(steps):
        total, difference = v.chunk(2, dim=-1)
        v = torch.stack([(total + difference) * SQRT_HALF, (total - difference) * SQRT_HALF], dim=-1).flatten(
            -2
        )
    return merge_tiles(v, tile)


def hadamard_transform(x: Tensor, scale: float = 1.0) -> Tensor:
    """Walsh-Hadamard transform of the last dimension in natural order, times `scale`.

    A dimension that is not a power of two is zero-padded to the next power of two, transformed, and cut to
    its length. The transform adds and subtracts, `v[i], v[i+h] = v[i] + v[i+h], v[i] - v[i+h]` for h = 1, 2,
    4, ..., and multiplies once at the end.
    """
    size = x.shape[-1]
    padded = 1 << max(size - 1, 0).bit_length()
    v = torch.nn.functional.pad(x, (0, padded - size))
    h = 1
    while h < padded:
        pairs = v.unflatten(-1, (padded // (2 * h), 2, h))
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        v = torch.stack([a + b, a - b], dim=-2).flatten(-3)
        h *= 2
    return v[..., :size] * torch.tensor(scale, dtype=x.dtype, device=x.device)
