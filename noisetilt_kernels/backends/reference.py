"""The pure-PyTorch reference as a backend: slow, but it serves every device."""

import torch
from torch import Tensor

from ..config import WhiteningConfig
from ..python_ref import (
    MakeTable,
    Reference,
    fourier,
    order_stats,
    project_wgnc,
    project_wgnc_blocks,
    tile_stats,
    transforms,
    whitening,
)
from .tables import Extents, cached_table, check_table

NAME = "reference"

__all__ = ["project_wgnc", "project_wgnc_blocks"]


def refusal(op: str, device: torch.device, extents: Extents) -> str | None:
    """Return None: the reference serves every call."""
    return None


def describe() -> str:
    """Describe the backend in one line."""
    return "pure PyTorch (python_ref)"


def project_2os(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    check_table(lower, upper)
    return order_stats.project_2os(x, lower, upper)


def project_tile_stats(
    x: Tensor, tile: tuple[int, int], chunk_sizes: tuple[int, ...], alpha: float
) -> Tensor:
    return tile_stats.project_tile_stats(x, tile, chunk_sizes, tables_like(x, alpha))


def whiten(x: Tensor, config: WhiteningConfig) -> Tensor:
    make_table = tables_like(x, config.alpha)
    return whitening.whiten(x, config.chunk_sizes, config.tile_sizes, config.mixing, make_table)


def compact_fourier(x: Tensor, inverse: bool) -> Tensor:
    return fourier.compact_fourier_inverse(x) if inverse else fourier.compact_fourier(x)


def butterfly(x: Tensor, tile: tuple[int, int], steps: int, inverse: bool) -> Tensor:
    return (transforms.butterfly_inverse if inverse else transforms.butterfly)(x, tile, steps)


def hadamard_transform(x: Tensor, scale: float) -> Tensor:
    return transforms.hadamard_transform(x, scale)


def tables_like(x: Tensor, alpha: float) -> MakeTable:
    """Return the function that `python_ref` calls for a table, of x's dtype and on x's device."""

    def make_table(num_chunks: int, chunk_size: int, reference: Reference) -> tuple[Tensor, Tensor]:
        table = cached_table(num_chunks, chunk_size, alpha, reference, x.dtype, x.device)
        return table.lower, table.upper

    return make_table
