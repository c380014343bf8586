"""The whitening operator W, and two simpler operators for comparison."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .confidence_table import Normal
from .fourier import compact_fourier, compact_fourier_inverse
from .order_stats import project_2os
from .tile_stats import MakeTable, project_tile_stats
from .transforms import butterfly, butterfly_inverse


def project(
    x: Tensor, chunk_sizes: Sequence[int], tile_sizes: Sequence[Sequence[int]], make_table: MakeTable
) -> Tensor:
    """Apply 2OS to the values for each chunk size, then project tile statistics for each tile size (DESIGN
    section 5).

    x: samples (B, C, H, W). `make_table`: see `project_tile_stats`.
    """
    values = x.flatten(1)
    for chunk_size in chunk_sizes:
        values = project_2os(values, *make_table(values.shape[1] // chunk_size, chunk_size, Normal()))
    x = values.reshape(x.shape)
    for tile in tile_sizes:
        x = project_tile_stats(x, tile, chunk_sizes, make_table)
    return x


def finite_or_nan(x: Tensor) -> Tensor:
    """Return samples (B, C, H, W) in which a sample with a non-finite value is NaN throughout."""
    finite = x.flatten(1).isfinite().all(dim=1)[:, None, None, None]
    return torch.where(finite, x, torch.nan)


def project_mixing_domain(
    x: Tensor,
    tile: Sequence[int],
    repeats: int,
    chunk_sizes: Sequence[int],
    tile_sizes: Sequence[Sequence[int]],
    make_table: MakeTable,
) -> Tensor:
    """Project samples (B, C, H, W) after each of `repeats` butterfly steps on tiles, and invert the steps."""
    for _ in range(repeats):
        x = project(butterfly(x, tile, 1), chunk_sizes, tile_sizes, make_table)
    return butterfly_inverse(x, tile, repeats)


def whiten(
    x: Tensor,
    chunk_sizes: Sequence[int],
    tile_sizes: Sequence[Sequence[int]],
    mixing: Sequence[tuple[Sequence[int], int]],
    make_table: MakeTable,
) -> Tensor:
    """The whitening operator W (paper section 4 and appendix B; DESIGN section 5).

    Args:
        x: samples (B, C, H, W), float32 or float64, C*H*W even and divisible by every chunk size.
        chunk_sizes: chunk sizes of 2OS, for values and for tile statistics.
        tile_sizes: tile sizes (th, tw) of the tile statistics.
        mixing: mixing domains, each a tile size (th, tw) and a number of butterfly steps.
        make_table: `make_table(num_chunks, chunk_size, reference)` returns a table of x's dtype.

    Returns:
        Tensor (B, C, H, W): x projected in the sample domain, in the compact Fourier domain, and after each
        butterfly step of every mixing domain. A sample with a non-finite value becomes NaN throughout.
    """
    x = project(finite_or_nan(x), chunk_sizes, tile_sizes, make_table)
    z = compact_fourier(x.flatten(1)).reshape(x.shape)
    z = project(z, chunk_sizes, tile_sizes, make_table)
    x = compact_fourier_inverse(z.flatten(1)).reshape(x.shape)
    for tile, repeats in mixing:
        x = project_mixing_domain(x, tile, repeats, chunk_sizes, tile_sizes, make_table)
    return x


def identity(x: Tensor) -> Tensor:
    """Return x unchanged: the raw direction (paper eq. 114)."""
    return x


def norm_projection(x: Tensor) -> Tensor:
    """Scale every sample of (B, ...) to norm sqrt(N), in float64 (paper eq. 115). Zero samples stay zero."""
    values = x.flatten(1).double()
    norm = values.norm(dim=1, keepdim=True)
    values = values * math.sqrt(values.shape[1]) / torch.where(norm == 0, 1.0, norm)
    return values.to(x.dtype).reshape(x.shape)
