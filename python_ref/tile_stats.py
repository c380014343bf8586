"""Tile statistics: mean and centred energy of every tile."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .arithmetic import sqrt_rn, tree_sum
from .confidence_table import ChiSquare, Normal, Reference
from .order_stats import project_2os
from .tiling import tile_regions

MakeTable = Callable[[int, int, Reference], tuple[Tensor, Tensor]]
"""Function of (num_chunks, chunk_size, reference) that returns a table (lower, upper)."""

# A tile counts as constant if E <= K * (ratio * mean)^2 or E < energy.
CONSTANT_RATIO = {torch.float32: 2.0**-18, torch.float64: 2.0**-47}
CONSTANT_ENERGY = {torch.float32: 2.0**-90, torch.float64: 2.0**-900}


def split_tiles(x: Tensor, tile: Sequence[int]) -> Tensor:
    """Split (B, C, H, W) into tiles (B, C, H/th, W/tw, K), each flattened row-major."""
    th, tw = tile
    return x.unfold(2, th, th).unfold(3, tw, tw).flatten(4)


def merge_tiles(tiles: Tensor, tile: Sequence[int]) -> Tensor:
    """Inverse of `split_tiles`."""
    b, c, rows, columns, _ = tiles.shape
    th, tw = tile
    return tiles.unflatten(4, (th, tw)).transpose(3, 4).reshape(b, c, rows * th, columns * tw)


def project_tile_stats(
    x: Tensor, tile: Sequence[int], chunk_sizes: Sequence[int], make_table: MakeTable
) -> Tensor:
    """Project mean and centred energy of every tile onto their confidence tables (DESIGN section 3).

    Args:
        x: samples (B, C, H, W), float32 or float64.
        tile: tile size (th, tw), up to (H, W), of at least 2 values. If it does not divide (H, W), the plane
            is cut into tiles of nearly this size (`tile_regions`).
        chunk_sizes: chunk sizes of 2OS on the P statistics of all tiles of one size K = th*tw. Chunk sizes
            that do not divide P are skipped.
        make_table: `make_table(num_chunks, chunk_size, reference)` returns a table of x's dtype.

    Returns:
        Tensor (B, C, H, W). A tile has mean mu and centred energy E. 2OS projects m = sqrt(K)*mu against
        N(0, 1) and e = E against chi^2(K-1). The result is x' = m'/sqrt(K) + sqrt(e'/E) * (x - mu). A tile
        with unchanged statistics is copied. A constant tile takes the direction (+1, -1, +1, ...), with 0 as
        the last entry if K is odd. A tile with a non-finite energy becomes NaN: it contains NaN or inf, or
        values with overflowing squares (above about 1e18 in float32).
    """
    result = x.new_empty(x.shape)
    for region in tile_regions((x.shape[2], x.shape[3]), (tile[0], tile[1])):
        region.of(result).copy_(_project_equal_tiles(region.of(x), region.tile, chunk_sizes, make_table))
    return result


def _project_equal_tiles(
    x: Tensor, tile: Sequence[int], chunk_sizes: Sequence[int], make_table: MakeTable
) -> Tensor:
    """Project the statistics of tiles that divide (H, W): `project_tile_stats`."""
    tiles = split_tiles(x, tile)  # [B, C, rows, columns, K]
    size = tiles.shape[-1]
    root = torch.tensor(math.sqrt(size), dtype=x.dtype, device=x.device)
    count = torch.tensor(float(size), dtype=x.dtype, device=x.device)

    mu = tree_sum(tiles) / count
    centred = tiles - mu[..., None]
    energy = tree_sum(centred * centred)

    m, e = (root * mu).flatten(1), energy.flatten(1)  # [B, P]
    new_m, new_e = m, e
    for chunk_size in chunk_sizes:
        if m.shape[1] % chunk_size == 0:
            num_chunks = m.shape[1] // chunk_size
            new_m = project_2os(new_m, *make_table(num_chunks, chunk_size, Normal()))
            new_e = project_2os(new_e, *make_table(num_chunks, chunk_size, ChiSquare(size - 1)))
    unchanged = ((new_m == m) & (new_e == e)).view_as(mu)
    new_m, new_e = new_m.view_as(mu), new_e.view_as(mu)

    # The direction of a constant tile is rounding noise. An alternating direction replaces it.
    offset = CONSTANT_RATIO[x.dtype] * mu
    constant = (energy <= count * (offset * offset)) | (energy < CONSTANT_ENERGY[x.dtype])
    alternating = torch.ones(size, dtype=x.dtype, device=x.device)
    alternating[1::2] = -1
    alternating[size - size % 2 :] = 0
    direction = torch.where(constant[..., None], alternating, centred)
    direction_energy = torch.where(constant, float(size - size % 2), energy)

    scale = sqrt_rn(new_e / direction_energy)
    result = (new_m / root)[..., None] + scale[..., None] * direction
    result = torch.where(unchanged[..., None], tiles, result)
    result = torch.where(energy.isfinite()[..., None], result, torch.nan)
    return merge_tiles(result, tile)
