"""What project(x) needs on a device: made once for a configuration, and there for every stream and CUDA graph."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..config import Tile
from .tables import Tables, projection_tables

Made = TypeVar("Made")
TileTables = tuple[Tile, list[tuple[Tables, Tables]]]
"""A tile size, and the tables of mean and energy for each of its chunk sizes."""


class Projections(Generic[Made]):
    """`make(values, tiles)` of the tables of a projection (see `bounds.projection_tables`), kept for the next call."""

    def __init__(self, make: Callable[[list[Tables], list[TileTables]], Made]) -> None:
        self._make = make
        self._kept = lru_cache(maxsize=32)(self._made)
        self._captured: dict[
            int, Made
        ] = {}  # those that a graph reads, which must outlive their place in the cache

    def __call__(
        self,
        x: Tensor,
        value_chunk_sizes: tuple[int, ...],
        chunk_sizes: tuple[int, ...],
        tile_sizes: tuple[Tile, ...],
        alpha: float,
    ) -> Made:
        """For samples x (B, C, H, W).

        Raises:
            RuntimeError: a CUDA graph is being captured, and tables cannot be made now.
        """
        made = self._kept(x.shape[1:], value_chunk_sizes, chunk_sizes, tile_sizes, alpha, x.dtype, x.device)
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            self._captured[id(made)] = made
        return made

    def _made(
        self,
        shape: Sequence[int],
        value_chunk_sizes: tuple[int, ...],
        chunk_sizes: tuple[int, ...],
        tile_sizes: tuple[Tile, ...],
        alpha: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Made:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "noisetilt: a CUDA graph is being captured, and the bounds are not on the device yet; "
                "call the operator once with such arguments before"
            )
        values, tiles = projection_tables(
            shape, value_chunk_sizes, chunk_sizes, tile_sizes, alpha, dtype, device
        )
        made = self._make(values, list(zip(tile_sizes, tiles, strict=True)))
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # from here on, every stream may read them
        return made
