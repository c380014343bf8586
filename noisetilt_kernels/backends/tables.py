"""Confidence tables and factors of FFTs: made once, kept in memory (tables on disk too), and arranged for the
projections of a backend.

The sections are: lifetime on a GPU; one table; factors of FFTs; all tables of a projection; tables passed by
the user; sizes that decide which backend can serve a call. `table_cache` keeps tables on disk.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, update_wrapper
from operator import index
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from ..checks import shown
from ..config import DEFAULT_ALPHA, Tile, check_alpha, check_chunks
from ..python_ref import NORMAL, ChiSquare, Normal, Reference, Region, tile_regions, twiddle_factors
from ..python_ref import confidence_table as compute_table
from . import table_cache
from .table_cache import Columns

_Made = TypeVar("_Made")

# ---- lifetime on a GPU ----


class Kept(Generic[_Made]):
    """Value that is kept for later calls. Its tensors are complete, and calls on every stream may read them.

    A kept value can be dropped at any time, while kernels that read it wait on some stream: another value
    takes its place in a cache, or the user deletes the table that it belongs to. PyTorch's allocator gives
    the memory of a tensor without owner to the stream that made the tensor, at once. It waits only for other
    streams that are recorded. A CUDA graph is not recorded: it may be replayed at any time. So this is the
    rule for every tensor that is kept here: `read` is called before each use, and the caller owns the value
    until its kernels are enqueued.
    """

    def __init__(self, value: _Made) -> None:
        self._value = value
        self._on_gpu = [t for t in tree_leaves(value) if isinstance(t, Tensor) and t.is_cuda]
        self._recorded: set[int] = set()  # identifiers of streams

    def read(self) -> _Made:
        """Return the value, for kernels on the current stream of the tensors' device."""
        if self._on_gpu:
            if torch.cuda.is_current_stream_capturing():
                _in_graphs.add(self)
            else:
                stream = torch.cuda.current_stream(self._on_gpu[0].device)
                if stream.stream_id not in self._recorded:
                    for tensor in self._on_gpu:
                        tensor.record_stream(stream)
                    self._recorded.add(stream.stream_id)
        return self._value


_in_graphs: set[Kept[Any]] = set()  # read by a CUDA graph: never dropped


class KeptResults(Generic[_Made]):
    """Function of hashable arguments, the last one a device, whose results are kept for later calls.

    The function returns what `make` returns, and raises RuntimeError if a CUDA graph is being captured and
    the result is not there yet. The result that was not used for the longest time is dropped if there are
    more than `most`.
    """

    def __init__(self, make: Callable[..., _Made], most: int) -> None:
        @lru_cache(maxsize=most)
        def kept(*args: Any) -> Kept[_Made]:
            on_gpu = args[-1].type == "cuda"
            if on_gpu and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    "noisetilt: a CUDA graph is being captured, and the tables or FFT factors of this call "
                    "are not on the device yet; "
                    "call the operator once with the same arguments before the capture"
                )
            made = make(*args)
            if on_gpu:
                torch.cuda.current_stream(args[-1]).synchronize()
            return Kept(made)

        self._kept = kept
        self.cache_clear = kept.cache_clear
        update_wrapper(self, make)

    def __call__(self, *args: Any) -> _Made:
        return self._kept(*args).read()


# ---- one table ----


class Table(NamedTuple):
    """Lower and upper bounds (M, D). Their storage is column-major, because the kernels read ranks of one
    column.
    """

    lower: Tensor
    upper: Tensor
    monotone: bool
    """True if no bound decreases down a column. A range of ranks may then suffice to clip a value."""


def confidence_table(
    num_chunks: int, chunk_size: int, alpha: float = DEFAULT_ALPHA, reference: Reference = NORMAL
) -> tuple[Tensor, Tensor]:
    """Return the table `(lower, upper)` of `project_2os` for M chunks of D values (DESIGN section 2).

    Tables are cached in memory and in the user's cache directory.

    Args:
        num_chunks: M, at least 1.
        chunk_size: D, at least 1.
        alpha: significance level, 1e-100 to 0.999999. The confidence level is 1 - alpha.
        reference: distribution of the values, `Normal()` or `ChiSquare(df)`.

    Returns:
        Two float64 CPU tensors (M, D). Use `.float()` for float32, float16 or bfloat16 samples.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: an argument has the wrong type.
    """
    try:
        num_chunks, chunk_size = index(num_chunks), index(chunk_size)
    except TypeError:
        raise TypeError(
            "confidence_table: num_chunks and chunk_size must be integers, "
            f"got {shown(num_chunks)} and {shown(chunk_size)}"
        ) from None
    if num_chunks < 1 or chunk_size < 1:
        raise ValueError(
            "confidence_table: num_chunks and chunk_size must be at least 1, "
            f"got {num_chunks} and {chunk_size}"
        )
    check_chunks("confidence_table", num_chunks, chunk_size)
    if not isinstance(reference, (Normal, ChiSquare)):
        raise TypeError(
            f"confidence_table: reference must be Normal() or ChiSquare(df), got {shown(reference)}"
        )
    check_alpha("confidence_table", alpha)
    table = cached_table(num_chunks, chunk_size, float(alpha), reference, torch.float64, torch.device("cpu"))
    return table.lower.clone(), table.upper.clone()


def _make_table(
    num_chunks: int,
    chunk_size: int,
    alpha: float,
    reference: Reference,
    dtype: torch.dtype,
    device: torch.device,
) -> Table:
    """Return a table from disk, or computed now."""
    key = f"{num_chunks}x{chunk_size}, alpha {alpha!r}, {reference!r}, {dtype}"
    columns = table_cache.read(key, (chunk_size, num_chunks), dtype)
    if columns is None:
        table = compute_table(num_chunks, chunk_size, alpha, reference)
        if not (table[0].isfinite() & table[1].isfinite() & (table[0] <= table[1])).all():
            raise ValueError(
                f"confidence_table: {num_chunks} chunks of {chunk_size} values have no table in float64 at "
                f"alpha {alpha:g} for {reference}; choose another alpha"
            )
        lower, upper = (bounds.to(dtype).t().contiguous() for bounds in table)
        monotone = bool(((lower.diff() >= 0).all() & (upper.diff() >= 0).all()).item())
        columns = Columns(lower, upper, monotone)
        table_cache.write(key, columns)
    return Table(columns.lower.to(device).t(), columns.upper.to(device).t(), columns.monotone)


cached_table = KeptResults(_make_table, most=256)
"""Function that returns a table from memory, from disk, or computed now. Tables are shared: never write to
one.
"""


# ---- factors of FFTs ----


def _make_factors(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return twiddle_factors(size, dtype).to(device)


fft_factors = KeptResults(_make_factors, most=16)
"""Function that returns the factors of the FFT of N real values (`python_ref.twiddle_factors`) on a device.
They are shared: never write to them.
"""


# ---- all tables of a projection ----

RegionTables = tuple[Region, list[tuple[Table, Table]]]
"""Tiles of one size, and the tables of mean and energy for each of their chunk sizes."""
TileTables = tuple[Tile, list[RegionTables]]
"""Tile size of a configuration, and the tables of the regions into which it cuts a plane."""


def projection_tables(
    shape: Sequence[int],
    value_chunk_sizes: Sequence[int],
    chunk_sizes: Sequence[int],
    tile_sizes: Sequence[Tile],
    alpha: float,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[list[Table], list[TileTables]]:
    """Return the tables of project(x) for samples of a shape (C, H, W) (DESIGN sections 3 and 5).

    Returns:
        The tables of the values, one for each chunk size. The tables of mean and energy for each region of
        each tile size, a pair for each of its chunk sizes. Chunk sizes that do not divide the number of tiles
        are skipped.
    """
    channels, *plane = shape
    size = math.prod(shape)

    def table(count: int, chunk_size: int, reference: Reference) -> Table:
        return cached_table(count // chunk_size, chunk_size, alpha, reference, dtype, device)

    def of_region(region: Region) -> RegionTables:
        count, energy = channels * region.tiles_per_plane, ChiSquare(math.prod(region.tile) - 1)
        return region, [
            (table(count, d, NORMAL), table(count, d, energy)) for d in chunk_sizes if count % d == 0
        ]

    values = [table(size, d, NORMAL) for d in value_chunk_sizes]
    return values, [
        (tile, [of_region(region) for region in tile_regions((plane[0], plane[1]), tile)])
        for tile in tile_sizes
    ]


class Projections(Generic[_Made]):
    """Results of `make(samples, values, tiles)`, kept for later calls.

    `samples` is an empty batch with the shape, dtype and device of the samples. `values` and `tiles` are the
    tables of their projection (`projection_tables`).
    """

    def __init__(self, make: Callable[[Tensor, list[Table], list[TileTables]], _Made]) -> None:
        self._make = make
        self._kept = KeptResults(self._made, most=32)

    def __call__(
        self,
        x: Tensor,
        value_chunk_sizes: tuple[int, ...],
        chunk_sizes: tuple[int, ...],
        tile_sizes: tuple[Tile, ...],
        alpha: float,
    ) -> _Made:
        """Return the result for samples x (B, C, H, W).

        Raises:
            RuntimeError: a CUDA graph is being captured, and the tables are not on the device yet.
        """
        return self._kept(x.shape[1:], value_chunk_sizes, chunk_sizes, tile_sizes, alpha, x.dtype, x.device)

    def _made(
        self,
        shape: Sequence[int],
        value_chunk_sizes: tuple[int, ...],
        chunk_sizes: tuple[int, ...],
        tile_sizes: tuple[Tile, ...],
        alpha: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> _Made:
        samples = torch.empty((0, *shape), dtype=dtype, device=device)
        return self._make(
            samples,
            *projection_tables(shape, value_chunk_sizes, chunk_sizes, tile_sizes, alpha, dtype, device),
        )


# ---- tables passed by the user ----

_Finding = TypeVar("_Finding")


def raise_for_faults(nan: bool, crossed: bool) -> None:
    """Raise ValueError if a bound is NaN, or a lower bound is above its upper bound."""
    if nan:
        raise ValueError("project_2os: lower and upper must not contain NaN")
    if crossed:
        raise ValueError("project_2os: lower must not exceed upper anywhere")


def check_table(lower: Tensor, upper: Tensor) -> None:
    """Raise ValueError if a table contains NaN or crossed bounds. The host waits for the device."""
    nan = (lower.isnan() | upper.isnan()).any()
    raise_for_faults(*torch.stack([nan, (lower > upper).any()]).tolist())


@dataclass(frozen=True)
class _Known(Generic[_Finding]):
    """Finding about a table: a lower tensor with this upper tensor, in these versions of both."""

    upper: TensorWeakRef
    versions: tuple[int, int]
    finding: Kept[_Finding]


class ExaminedTables(Generic[_Finding]):
    """Results of `examine(lower, upper)`, kept until one of the tensors is changed in place or deleted.

    `examine` waits until its result is complete. The lifetime of `lower` and `upper` is the user's concern.
    """

    def __init__(self, examine: Callable[[Tensor, Tensor], _Finding]) -> None:
        self._examine = examine
        self._known = WeakTensorKeyDictionary()  # lower: _Known

    def __call__(self, lower: Tensor, upper: Tensor) -> _Finding:
        if lower.is_inference() or upper.is_inference():  # these tensors have no version
            return self._examine(lower, upper)
        versions = lower._version, upper._version
        known: _Known[_Finding] | None = self._known.get(lower)
        if known is None or known.versions != versions or known.upper() is not upper:
            known = _Known(TensorWeakRef(upper), versions, Kept(self._examine(lower, upper)))
            self._known[lower] = known
        return known.finding.read()


# ---- sizes that decide which backend can serve a call ----


class Extents(NamedTuple):
    """Sizes in a call that a backend may limit. 0 means that the call has no such size."""

    sample_size: int = 0
    """Values of a sample, or coefficients of a spectrum."""
    tile_size: int = 0
    """Values of a tile, if tile statistics are projected."""
    block_size: int = 0
    """Coefficients of a WGNC block."""
