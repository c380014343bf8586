"""The operators as Triton kernels: the operations of a backend (see `noisetilt_kernels.backends`).

All work is enqueued on the current stream of x's device. The first call with new arguments makes tables and
compiles kernels. After it, a call with the same arguments and the same shape, batch included, can be captured
in a CUDA graph.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ...config import Tile, WhiteningConfig
from ..tables import ExaminedTables, Projections, Table, TileTables, check_table
from . import fourier, tile_stats, transforms, wgnc, whitening
from .launch import ALIGNMENT
from .order_stats import FieldTables, tables_in_turn
from .order_stats import project_2os as _project_2os
from .tile_stats import TileProjection
from .whitening import Projection


def _for_kernels(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap an operation: make the device of its first argument current, as Triton needs, and align that
    argument.
    """

    @wraps(operation)
    def wrapped(x: Tensor, *args: Any) -> Tensor:
        if x.data_ptr() % ALIGNMENT:
            x = x.clone()
        if x.device.type == "cpu" or x.device.index == torch.cuda.current_device():
            return operation(x, *args)
        with torch.cuda.device(x.device):
            return operation(x, *args)

    return wrapped


_examined = ExaminedTables(check_table)


@_for_kernels
def project_2os(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    if x.device.type == "cpu" or not torch.cuda.is_current_stream_capturing():
        _examined(lower, upper)
    if lower.data_ptr() % ALIGNMENT or upper.data_ptr() % ALIGNMENT:
        lower, upper = (bounds.clone(memory_format=torch.contiguous_format) for bounds in (lower, upper))
    return _project_2os(x, FieldTables(lower[None], upper[None]))


@_for_kernels
def project_tile_stats(x: Tensor, tile: Tile, chunk_sizes: tuple[int, ...], alpha: float) -> Tensor:
    projection = _projections(x, (), chunk_sizes, (tile,), alpha)
    return tile_stats.project_tile_stats(x, projection.tiles)


@_for_kernels
def whiten(x: Tensor, config: WhiteningConfig) -> Tensor:
    projection = _projections(x, config.chunk_sizes, config.chunk_sizes, config.tile_sizes, config.alpha)
    return whitening.whiten(x, projection, config.mixing)


compact_fourier = _for_kernels(fourier.compact_fourier)
butterfly = _for_kernels(transforms.butterfly)
hadamard_transform = _for_kernels(transforms.hadamard_transform)
project_wgnc = _for_kernels(wgnc.project_wgnc)
project_wgnc_blocks = _for_kernels(wgnc.project_wgnc_blocks)


def _make_projection(samples: Tensor, values: list[Table], tiles: list[TileTables]) -> Projection:
    """Return the tables as the kernels read them. Mean and energy are two fields."""
    return Projection(
        tables_in_turn([[table] for table in values]),
        tuple(
            TileProjection(region, tables_in_turn(pairs)) for _, regions in tiles for region, pairs in regions
        ),
    )


_projections = Projections(_make_projection)
