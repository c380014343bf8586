"""The whitening operator W, and the simpler operators it is compared with."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .confidence_bounds import Normal
from .order_stats import project_2os
from .tile_stats import Bounds, project_tile_stats
from .transforms import butterfly, butterfly_inverse, compact_fourier, compact_fourier_inverse


def project(
    x: Tensor, chunk_sizes: Sequence[int], tile_sizes: Sequence[Sequence[int]], bounds: Bounds
) -> Tensor:
    """2OS on values for each chunk size, then tile statistics for each tile size (DESIGN section 5).

    x: samples (B, C, H, W). `bounds` as in `project_tile_stats`.
    """
    values = x.flatten(1)
    for chunk_size in chunk_sizes:
        values = project_2os(values, *bounds(values.shape[1] // chunk_size, chunk_size, Normal()))
    x = values.reshape(x.shape)
    for tile in tile_sizes:
        x = project_tile_stats(x, tile, chunk_sizes, bounds)
    return x


def whiten(
    x: Tensor,
    chunk_sizes: Sequence[int],
    tile_sizes: Sequence[Sequence[int]],
    mixing: Sequence[tuple[Sequence[int], int]],
    bounds: Bounds,
) -> Tensor:
    """The whitening operator W (paper section 4 and appendix B; DESIGN section 5).

    Args:
        x: samples (B, C, H, W), float32 or float64, C*H*W even and divisible by every chunk size.
        chunk_sizes: chunk sizes of 2OS, on values and on tile statistics.
        tile_sizes: tiles (th, tw) of the tile statistics.
        mixing: mixing domains, each a tile (th, tw) and a number of butterfly steps.
        bounds: as in `project_tile_stats`.

    Returns:
        Tensor (B, C, H, W): x projected in its own domain, in the compact Fourier domain, and after
        each butterfly step of every mixing domain. A sample with a non-finite value is NaN throughout.
    """
    finite = x.flatten(1).isfinite().all(dim=1)[:, None, None, None]
    x = torch.where(finite, x, torch.nan)

    x = project(x, chunk_sizes, tile_sizes, bounds)
    z = compact_fourier(x.flatten(1)).reshape(x.shape)
    z = project(z, chunk_sizes, tile_sizes, bounds)
    x = compact_fourier_inverse(z.flatten(1)).reshape(x.shape)
    for tile, repeats in mixing:
        for _ in range(repeats):
            x = project(butterfly(x, tile, 1), chunk_sizes, tile_sizes, bounds)
        x = butterfly_inverse(x, tile, repeats)
    return x


def identity(x: Tensor) -> Tensor:
    """The raw direction (paper eq. 114)."""
    return x


def norm_projection(x: Tensor) -> Tensor:
    """Every sample of (B, ...) brought to norm sqrt(N) (paper eq. 115), in float64. A zero sample stays zero."""
    values = x.flatten(1).double()
    norm = values.norm(dim=1, keepdim=True)
    values = values * math.sqrt(values.shape[1]) / torch.where(norm == 0, 1.0, norm)
    return values.to(x.dtype).reshape(x.shape)
