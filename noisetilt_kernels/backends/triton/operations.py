"""The operators as Triton kernels: the operations of a backend (see `noisetilt_kernels.backends`).

Everything is enqueued on the current stream of x's device. The first call with new arguments makes tables and compiles
kernels; after it, a call can be captured in a CUDA graph.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ...config import Tile, WhiteningConfig
from ..projections import Projections, TileTables
from ..tables import Tables
from ..user_tables import Examined, check_tables
from . import tile_stats, transforms, wgnc, whitening
from .order_stats import Bounds
from .order_stats import project_2os as _project_2os
from .tile_stats import TileProjection
from .whitening import Projection

_ALIGNMENT = 16  # bytes, see Launch


def _for_kernels(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Launches where the first argument is, since Triton launches on the current device; and aligns it."""

    @wraps(operation)
    def wrapped(x: Tensor, *args: Any) -> Tensor:
        if x.data_ptr() % _ALIGNMENT:
            x = x.clone()
        if x.device.type == "cpu" or x.device.index == torch.cuda.current_device():
            return operation(x, *args)
        with torch.cuda.device(x.device):
            return operation(x, *args)

    return wrapped


_examined = Examined(check_tables)


@_for_kernels
def project_2os(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    if x.device.type == "cpu" or not torch.cuda.is_current_stream_capturing():
        _examined(lower, upper)
    if lower.data_ptr() % _ALIGNMENT or upper.data_ptr() % _ALIGNMENT:
        lower, upper = (table.clone(memory_format=torch.contiguous_format) for table in (lower, upper))
    return _project_2os(x, Bounds(lower[None], upper[None]))


@_for_kernels
def project_tile_stats(x: Tensor, tile: Tile, chunk_sizes: tuple[int, ...], alpha: float) -> Tensor:
    projection = _projection(x, (), chunk_sizes, (tile,), alpha)
    return tile_stats.project_tile_stats(x, projection.tiles)


@_for_kernels
def whiten(x: Tensor, config: WhiteningConfig) -> Tensor:
    projection = _projection(x, config.chunk_sizes, config.chunk_sizes, config.tile_sizes, config.alpha)
    return whitening.whiten(x, projection, config.mixing)


compact_fourier = _for_kernels(transforms.compact_fourier)
butterfly = _for_kernels(transforms.butterfly)
hadamard_transform = _for_kernels(transforms.hadamard_transform)
project_wgnc = _for_kernels(wgnc.project_wgnc)
project_wgnc_blocks = _for_kernels(wgnc.project_wgnc_blocks)


def _bounds(*tables: Tables) -> Bounds:
    lower = torch.stack([table.lower.t() for table in tables]).transpose(1, 2)  # ranks run down a column
    upper = torch.stack([table.upper.t() for table in tables]).transpose(1, 2)
    return Bounds(lower, upper)


def _make_projection(values: list[Tables], tiles: list[TileTables]) -> Projection:
    """The tables of mean and energy side by side."""
    return Projection(
        tuple(_bounds(tables) for tables in values),
        tuple(
            TileProjection(tile, tuple(_bounds(*tables) for tables in statistics))
            for tile, statistics in tiles
        ),
    )


_projection = Projections(_make_projection)
