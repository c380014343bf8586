"""Confidence tables on disk: none. A kernel of the Kernel Hub writes no files, and keeps tables in memory."""

from typing import NamedTuple

import torch
from torch import Tensor


class Columns(NamedTuple):
    """Table as it is kept: lower and upper bounds (D, M), contiguous, and `Table.monotone`."""

    lower: Tensor
    upper: Tensor
    monotone: bool


def read(key: str, shape: tuple[int, int], dtype: torch.dtype) -> Columns | None:
    """Return None: there is no table on disk."""
    return None


def write(key: str, columns: Columns) -> None:
    """Do nothing."""
