"""The compiled C++ kernels as a backend for the CPU."""

import torch
from torch import Tensor

from ..config import Tile, WhiteningConfig
from . import compiled, library
from .compiled import (
    ProjectionArguments,
    butterfly,
    compact_fourier,
    hadamard_transform,
    has_kernels_for,
    project_wgnc,
    project_wgnc_blocks,
    projection_arguments,
)
from .tables import Extents, Projections, Table, TileTables

NAME = "cpu"

__all__ = [
    "butterfly",
    "compact_fourier",
    "hadamard_transform",
    "project_2os",
    "project_tile_stats",
    "project_wgnc",
    "project_wgnc_blocks",
    "whiten",
]

_ops = torch.ops.noisetilt


def refusal(op: str, device: torch.device, extents: Extents) -> str | None:
    """Return the reason why the C++ kernels cannot serve the operator on the device, or None if they can."""
    if device.type != "cpu":
        return f"its kernels are for the CPU, not for {device.type}"
    if library.failure is None and not has_kernels_for("cpu"):
        return "this build has no CPU kernels"
    return library.failure


def describe() -> str:
    """Describe the backend in one line."""
    return f"C++ kernels, {library.build_info()['variant']} variant"


def project_2os(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    result = x.clone()
    _ops._project_2os_.default(result, lower, upper)
    return result


def project_tile_stats(x: Tensor, tile: Tile, chunk_sizes: tuple[int, ...], alpha: float) -> Tensor:
    return compiled.project_tile_stats(x, tile, chunk_sizes, alpha, _projections)


def whiten(x: Tensor, config: WhiteningConfig) -> Tensor:
    return compiled.whiten(x, config, _projections)


def _make_projection(values: list[Table], tiles: list[TileTables]) -> ProjectionArguments:
    return projection_arguments(values, tiles, lambda table: (table.lower, table.upper))


_projections = Projections(_make_projection)
