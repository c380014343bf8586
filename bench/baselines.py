"""Idiomatic PyTorch versions of the operators, with torch's sorts and reductions. Rounding is not defined.

"Eager" in the tables is the faster of these and `python_ref`. The default sorts of torch are unstable, and
use AVX-512 in newer versions. The operators are defined with stable sorts; `stable=True` uses stable sorts.
"""

import math

import torch
from torch import Tensor

from noisetilt_kernels.backends.tables import cached_table
from noisetilt_kernels.config import DEFAULT_ALPHA, WhiteningConfig
from noisetilt_kernels.python_ref import ChiSquare, Normal, compact_fourier, compact_fourier_inverse

device = torch.device("cpu")  # of the tables
_tables: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}  # a plain dict: torch.compile sees constants


def table_of(count: int, chunk_size: int, df: int = 0) -> tuple[Tensor, Tensor]:
    """Return the table for `count` values, with reference chi^2(df), or N(0, 1) if df = 0."""
    key = count, chunk_size, df
    if key not in _tables:
        reference = ChiSquare(df) if df else Normal()
        table = cached_table(count // chunk_size, chunk_size, DEFAULT_ALPHA, reference, torch.float32, device)
        _tables[key] = table.lower, table.upper
    return _tables[key]


def project_2os(x: Tensor, lower: Tensor, upper: Tensor, stable: bool = False) -> Tensor:
    y, in_chunk = x.view(-1, lower.shape[1]).sort(dim=1, stable=stable)
    y, across = y.sort(dim=0, stable=stable)
    y = torch.minimum(torch.maximum(y, lower), upper)
    rows = torch.empty_like(y).scatter_(0, across, y)
    return torch.empty_like(rows).scatter_(1, in_chunk, rows).view(x.shape)


def project_tile_stats(
    x: Tensor, tile: tuple[int, int], chunk_sizes: tuple[int, ...], stable: bool = False
) -> Tensor:
    th, tw = tile
    size = th * tw
    tiles = x.unflatten(2, (-1, tw)).unflatten(1, (-1, th))  # [C, H/th, th, W/tw, tw]
    variance, mean = torch.var_mean(tiles, dim=(2, 4), correction=0, keepdim=True)
    m, e = math.sqrt(size) * mean.flatten(), size * variance.flatten()
    new_m, new_e = m, e
    for chunk_size in chunk_sizes:
        if m.numel() % chunk_size == 0:
            new_m = project_2os(new_m, *table_of(m.numel(), chunk_size), stable)
            new_e = project_2os(new_e, *table_of(m.numel(), chunk_size, size - 1), stable)
    scale = (new_e / e.clamp_min(1e-30)).sqrt().view(mean.shape)
    return ((tiles - mean) * scale + new_m.view(mean.shape) / math.sqrt(size)).flatten(1, 2).flatten(2)


def project(x: Tensor, config: WhiteningConfig, stable: bool) -> Tensor:
    for chunk_size in config.chunk_sizes:
        x = project_2os(x.flatten(), *table_of(x.numel(), chunk_size), stable).view(x.shape)
    for tile in config.tile_sizes:
        x = project_tile_stats(x, tile, config.chunk_sizes, stable)
    return x


def whiten(x: Tensor, config: WhiteningConfig, stable: bool = False) -> Tensor:
    """Whiten one sample (C, H, W)."""
    shape = x.shape
    x = project(x, config, stable)
    x = project(compact_fourier(x.view(1, -1)).view(shape), config, stable)
    x = compact_fourier_inverse(x.view(1, -1)).view(shape)
    for (th, tw), repeats in config.mixing:
        tiles = x.unflatten(2, (-1, tw)).unflatten(1, (-1, th)).transpose(2, 3)  # [C, H/th, W/tw, th, tw]
        for _ in range(repeats):
            v = tiles.flatten(3)
            v = torch.cat([v[..., 0::2] + v[..., 1::2], v[..., 0::2] - v[..., 1::2]], dim=-1) * math.sqrt(0.5)
            x = v.unflatten(3, (th, tw)).transpose(2, 3).flatten(1, 2).flatten(2)
            tiles = project(x, config, stable).unflatten(2, (-1, tw)).unflatten(1, (-1, th)).transpose(2, 3)
        v = tiles.flatten(3)
        for _ in range(repeats):
            total, difference = v.chunk(2, dim=-1)
            v = torch.stack([total + difference, total - difference], dim=-1).flatten(-2) * math.sqrt(0.5)
        x = v.unflatten(3, (th, tw)).transpose(2, 3).flatten(1, 2).flatten(2)
    return x


def project_wgnc(x: Tensor, block_size: int = 16) -> Tensor:
    """Project by the closed form of the paper (WGNC section 4), in float64."""
    size = x.shape[-1]
    spectrum = torch.fft.rfft(x.double(), norm="ortho")
    first = torch.complex(spectrum[..., 0].real, spectrum[..., -1].real) * math.sqrt(0.5)
    y = torch.cat([first[..., None], spectrum[..., 1:-1]], dim=-1).view(-1, block_size)
    r = y.abs()
    w = r.sort(dim=1, descending=True).values
    n = torch.arange(1, block_size + 1, dtype=torch.float64, device=x.device)
    s1, s2 = w.cumsum(1), (w * w).cumsum(1)
    t = math.pi / 4 * block_size
    lam = s1 / n - (t * (n * s2 - s1 * s1).clamp_min(0) / (n - t).clamp_min(1e-9)).sqrt() / n
    following = torch.cat([w[:, 1:], torch.full_like(w[:, :1], -math.inf)], dim=1)
    fits = (following <= lam) & (lam < w) & (n > t)
    lam = lam.gather(1, fits.double().argmax(1, keepdim=True))
    u = (r - lam).clamp_min(0)
    y = (math.sqrt(math.pi) / 2 * block_size * u / u.sum(1, keepdim=True) / r) * y
    y = y.view(1, -1)
    ends = torch.view_as_real(y[:, :1]) * math.sqrt(2.0)
    ends = torch.complex(ends, torch.zeros_like(ends))
    spectrum = torch.cat([ends[..., 0], y[:, 1:], ends[..., 1]], dim=1)
    return torch.fft.irfft(spectrum, n=size, norm="ortho").to(x.dtype)


def repeated_butterfly(x: Tensor, steps: int) -> Tensor:
    """Apply `steps` butterfly steps to the whole plane of every channel of one sample (C, H, W)."""
    v = x.flatten(1)
    for _ in range(steps):
        v = torch.cat([v[:, 0::2] + v[:, 1::2], v[:, 0::2] - v[:, 1::2]], dim=1) * math.sqrt(0.5)
    return v.view(x.shape)
