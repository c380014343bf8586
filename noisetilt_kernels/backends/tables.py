"""Confidence bounds, cached in memory and on disk."""

import logging
import math
import os
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import python_ref
from ..config import Tile, check_alpha
from ..python_ref import NORMAL, ChiSquare, Normal, Reference

_FORMAT = "noisetilt bounds 1"  # part of every key: raise it when the tables change
_LOG = logging.getLogger(__name__)


class Tables(NamedTuple):
    """Bounds ready for the kernels: (M, D) views of column-major storage, since ranks run down a column."""

    lower: Tensor
    upper: Tensor
    monotone: bool
    """Neither table decreases down a column, so that an element whose rank is known within limits can be settled."""


def confidence_bounds(
    num_chunks: int, chunk_size: int, alpha: float = 1e-4, reference: Reference = NORMAL
) -> tuple[Tensor, Tensor]:
    """Tables `(lower, upper)` of `project_2os` for `num_chunks` chunks of `chunk_size` values (DESIGN section 2).

    Args:
        num_chunks: M, at least 1.
        chunk_size: D, at least 1.
        alpha: the confidence level is 1 - alpha, 0 < alpha < 1.
        reference: `Normal()` or `ChiSquare(df)`.

    Returns:
        Two float64 CPU tensors (M, D). Round them with `.float()` for float32, float16 or bfloat16 input.
        Tables are kept in memory and in the user's cache directory.

    Raises:
        ValueError: an argument out of its range.
        TypeError: `reference` is neither.
    """
    if num_chunks < 1 or chunk_size < 1:
        raise ValueError(
            f"confidence_bounds: num_chunks and chunk_size must be at least 1, got {num_chunks} and {chunk_size}"
        )
    if not isinstance(reference, (Normal, ChiSquare)):
        raise TypeError(f"confidence_bounds: reference must be Normal() or ChiSquare(df), got {reference!r}")
    check_alpha("confidence_bounds", alpha)
    tables = cached_tables(num_chunks, chunk_size, alpha, reference, torch.float64, torch.device("cpu"))
    return tables.lower.clone(), tables.upper.clone()


@lru_cache(maxsize=64)
def cached_tables(
    num_chunks: int,
    chunk_size: int,
    alpha: float,
    reference: Reference,
    dtype: torch.dtype,
    device: torch.device,
) -> Tables:
    """The tables in `dtype` on `device`, from memory, from disk, or made now. Shared: never write to them."""
    key = f"{_FORMAT}, {num_chunks}x{chunk_size}, alpha {alpha!r}, {reference!r}, {dtype}"
    path = cache_directory() / f"{key.replace(' ', '_').replace('/', '_')}.safetensors"
    columns = _read(path, key)
    if columns is None:
        tables = python_ref.confidence_bounds(num_chunks, chunk_size, alpha, reference)
        lower, upper = (table.to(dtype).t().contiguous() for table in tables)
        monotone = bool(((lower.diff() >= 0).all() & (upper.diff() >= 0).all()).item())
        columns = lower, upper, monotone
        _write(path, key, columns)
    lower, upper, monotone = columns
    return Tables(lower.to(device).t(), upper.to(device).t(), monotone)


def projection_tables(
    shape: Sequence[int],
    value_chunk_sizes: Sequence[int],
    chunk_sizes: Sequence[int],
    tile_sizes: Sequence[Tile],
    alpha: float,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[list[Tables], list[list[tuple[Tables, Tables]]]]:
    """What project(x) needs on samples of a shape (C, H, W) (DESIGN sections 3 and 5).

    Returns:
        Tables of the values, for each chunk size; and for each tile size those of mean and energy, for each of its
        chunk sizes. Chunk sizes that do not divide the number of tiles are left out.
    """
    size = math.prod(shape)

    def tables(count: int, chunk_size: int, reference: Reference) -> Tables:
        return cached_tables(count // chunk_size, chunk_size, alpha, reference, dtype, device)

    def of_tiles(tile_size: int) -> list[tuple[Tables, Tables]]:
        count, energy = size // tile_size, ChiSquare(tile_size - 1)
        return [(tables(count, d, NORMAL), tables(count, d, energy)) for d in chunk_sizes if count % d == 0]

    return [tables(size, d, NORMAL) for d in value_chunk_sizes], [
        of_tiles(math.prod(tile)) for tile in tile_sizes
    ]


def cache_directory() -> Path:
    """Where the tables are kept on disk: the user's cache directory."""
    return Path(platformdirs.user_cache_dir("noisetilt_kernels", appauthor=False))


def _read(path: Path, key: str) -> tuple[Tensor, Tensor, bool] | None:
    """What the file holds; None where it is missing, damaged, or not the tables of `key`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                raise ValueError("its key is another")
            return file.get_tensor("lower"), file.get_tensor("upper"), metadata["monotone"] == "True"
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        _LOG.warning("rebuilding the cached bounds %s: %s", path, error)
        return None


def _write(path: Path, key: str, columns: tuple[Tensor, Tensor, bool]) -> None:
    """Write whole or not at all: to a temporary file first, then renamed. Failing is no error."""
    lower, upper, monotone = columns
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        os.close(handle)
        save_file(
            {"lower": lower, "upper": upper}, temporary, metadata={"key": key, "monotone": str(monotone)}
        )
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        _LOG.info("cannot cache bounds in %s: %s", path.parent, error)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
