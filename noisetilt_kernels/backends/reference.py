"""The pure-PyTorch reference as a backend: serves every device, slowly."""

import torch
from torch import Tensor

from .. import python_ref
from ..config import WhiteningConfig
from ..python_ref import Reference, project_wgnc, project_wgnc_blocks
from .extents import Extents
from .tables import Tables, cached_tables
from .user_tables import check_tables

NAME = "reference"

__all__ = ["project_wgnc", "project_wgnc_blocks"]


def refusal(op: str, device: torch.device, extents: Extents) -> str | None:
    """Never refuses."""
    return None


def describe() -> str:
    return "pure PyTorch (python_ref)"


def project_2os(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    check_tables(lower, upper)
    return python_ref.project_2os(x, lower, upper)


def project_tile_stats(
    x: Tensor, tile: tuple[int, int], chunk_sizes: tuple[int, ...], alpha: float
) -> Tensor:
    return python_ref.project_tile_stats(x, tile, chunk_sizes, _bounds_like(x, alpha))


def whiten(x: Tensor, config: WhiteningConfig) -> Tensor:
    bounds = _bounds_like(x, config.alpha)
    return python_ref.whiten(x, config.chunk_sizes, config.tile_sizes, config.mixing, bounds)


def compact_fourier(x: Tensor, inverse: bool) -> Tensor:
    return python_ref.compact_fourier_inverse(x) if inverse else python_ref.compact_fourier(x)


def butterfly(x: Tensor, tile: tuple[int, int], steps: int, inverse: bool) -> Tensor:
    return (python_ref.butterfly_inverse if inverse else python_ref.butterfly)(x, tile, steps)


def hadamard_transform(x: Tensor, scale: float) -> Tensor:
    return python_ref.hadamard_transform(x, scale)


def _bounds_like(x: Tensor, alpha: float) -> python_ref.Bounds:
    def bounds(num_chunks: int, chunk_size: int, reference: Reference) -> tuple[Tensor, Tensor]:
        tables: Tables = cached_tables(num_chunks, chunk_size, alpha, reference, x.dtype, x.device)
        return tables.lower, tables.upper

    return bounds
