"""Orthogonal transforms (DESIGN section 4): butterfly mixing and Walsh-Hadamard."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .arithmetic import SQRT_HALF
from .tile_stats import merge_tiles, split_tiles
from .tiling import mixing_regions


def butterfly(x: Tensor, tile: Sequence[int], steps: int) -> Tensor:
    """Apply `steps` butterfly steps to every tile of samples (B, C, H, W), th*tw even (DESIGN section 4).

    If the tile does not divide the plane, it is cut into tiles of an even number of values
    (`mixing_regions`). One step maps a tile of K values, flattened row-major, to (paper eq. 113)

        y[i] = (x[2i] + x[2i+1]) / sqrt2,    y[K/2+i] = (x[2i] - x[2i+1]) / sqrt2,    i < K/2.

    For K = 2^n, n steps are the Walsh-Hadamard transform H_K / sqrt(K) in natural order.
    """
    return _in_every_tile(x, tile, steps, _step)


def butterfly_inverse(y: Tensor, tile: Sequence[int], steps: int) -> Tensor:
    """Inverse (and transpose) of `butterfly`."""
    return _in_every_tile(y, tile, steps, _step_inverse)


def _step(v: Tensor) -> Tensor:
    even, odd = v[..., 0::2], v[..., 1::2]
    return torch.cat([(even + odd) * SQRT_HALF, (even - odd) * SQRT_HALF], dim=-1)


def _step_inverse(v: Tensor) -> Tensor:
    total, difference = v.chunk(2, dim=-1)
    return torch.stack([(total + difference) * SQRT_HALF, (total - difference) * SQRT_HALF], dim=-1).flatten(
        -2
    )


def _in_every_tile(x: Tensor, tile: Sequence[int], steps: int, step: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a step `steps` times to the values (..., K) of every tile."""
    result = x.clone()  # the values in no tile stay
    for region in mixing_regions((x.shape[2], x.shape[3]), (tile[0], tile[1])):
        v = split_tiles(region.of(x), region.tile)
        for _ in range(steps):
            v = step(v)
        region.of(result).copy_(merge_tiles(v, region.tile))
    return result


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
