"""Two-level order statistics (2OS), DESIGN section 2: sort, clip, unsort.

A program sorts a block of chunks in registers: first each chunk, then each column of the block. A sorted part
of a column is a run. If a run is the whole column, its order gives the ranks, and the values are clipped at
once. A longer column has several runs. The rank of an entry is then the sum of its ranks in all runs, found
by binary search. If there are more runs than one program searches, groups of runs are merged into longer runs
first, in the same way. Chunks too long for a block are sorted beforehand, each like a column.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import LAUNCH_TABLE, Launch, ceil_div, planned, power_of_two
from .sorting import LAST, entry_of, index_of, precedes, sort_entries


class FieldTables(NamedTuple):
    """Tables of F fields, (F, M, D), both with the same strides. Vector v is clipped to the table of field v
    modulo F.
    """

    lower: Tensor
    upper: Tensor


@triton.jit
def clip_entries(
    x_ptr, out_ptr, lower_ptr, upper_ptr, field_stride, row_stride, column_stride, vector, num_fields, base,
    position, rank, column, present,
):  # fmt: skip
    """Write the value at `position` of a vector, clipped to the bounds of its rank and column."""
    place = (
        (vector % num_fields) * field_stride
        + rank.to(tl.int64) * row_stride
        + column.to(tl.int64) * column_stride
    )
    x = tl.load(x_ptr + base + position, mask=present)
    lower = tl.load(lower_ptr + place, mask=present)
    upper = tl.load(upper_ptr + place, mask=present)
    tl.store(
        out_ptr + base + position, tl.where(x < lower, lower, tl.where(x > upper, upper, x)), mask=present
    )


@triton.jit
def sort_runs_kernel(
    x_ptr,
    chunk_key_ptr,
    chunk_index_ptr,
    run_key_ptr,
    run_index_ptr,
    out_ptr,
    lower_ptr,
    upper_ptr,
    field_stride,
    row_stride,
    column_stride,
    num_fields,
    num_chunks,
    chunk_size,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    SORTED_CHUNKS: tl.constexpr,
    COMPLETE: tl.constexpr,
):
    """Sort ROWS chunks of one vector, then the entries of COLUMNS of their columns.

    CHUNK: size of a chunk, padded to a power of two. SORTED_CHUNKS: read the entries of sorted chunks instead
    of values. COMPLETE: the rows are the whole column, so clip the values. Otherwise write entry `rank` of
    column j to place j M + rank of a vector of entries.
    """
    WIDE: tl.constexpr = x_ptr.dtype.element_ty == tl.float64
    num_groups = tl.cdiv(chunk_size, COLUMNS)
    num_runs = tl.cdiv(num_chunks, ROWS)
    program = tl.program_id(0)
    group = program % num_groups
    run = program // num_groups % num_runs
    vector = (program // num_groups // num_runs).to(tl.int64)
    base = vector * (num_chunks * chunk_size)

    i = tl.arange(0, ROWS * COLUMNS)
    row, column = run * ROWS + i // COLUMNS, group * COLUMNS + i % COLUMNS
    present = (row < num_chunks) & (column < chunk_size)
    if SORTED_CHUNKS:
        begin = row * chunk_size
        key = tl.load(chunk_key_ptr + base + begin + column, mask=present, other=LAST)
        if WIDE:
            index = begin + tl.load(chunk_index_ptr + base + begin + column, mask=present, other=0)
        else:
            key = tl.where(present, key + begin, key)
            index = key
    else:
        k = tl.arange(0, ROWS * CHUNK)
        chunk, place = run * ROWS + k // CHUNK, k % CHUNK
        there = (chunk < num_chunks) & (place < chunk_size)
        position = chunk * chunk_size + place
        x = tl.load(x_ptr + base + position, mask=there, other=0)
        key, index = entry_of(x, position)
        key, index = sort_entries(tl.where(there, key, LAST), index, 1, CHUNK, WIDE)
        key = _columns(key, group, ROWS, CHUNK, COLUMNS)
        index = _columns(index, group, ROWS, CHUNK, COLUMNS) if WIDE else key

    key, index = sort_entries(key, index, COLUMNS, ROWS, WIDE)
    if COMPLETE:
        clip_entries(
            x_ptr, out_ptr, lower_ptr, upper_ptr, field_stride, row_stride, column_stride, vector, num_fields,
            base, index_of(key, index, WIDE), row, column, present,
        )  # fmt: skip
    else:
        target = base + column * num_chunks + row
        tl.store(run_key_ptr + target, key, mask=present)
        if WIDE:
            tl.store(run_index_ptr + target, index, mask=present)


@triton.jit
def _columns(x, group, ROWS: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr):
    """Select one group of COLUMNS columns from x, which has ROWS rows of CHUNK values."""
    if COLUMNS == CHUNK:
        return x
    else:
        groups = tl.reshape(x, [ROWS, CHUNK // COLUMNS, COLUMNS])
        wanted = tl.arange(0, CHUNK // COLUMNS)[None, :, None] == group
        return tl.reshape(tl.sum(tl.where(wanted, groups, 0), axis=1), [ROWS * COLUMNS])


@triton.jit
def rank_in_runs_kernel(
    x_ptr,
    key_ptr,
    index_ptr,
    merged_key_ptr,
    merged_index_ptr,
    out_ptr,
    lower_ptr,
    upper_ptr,
    field_stride,
    row_stride,
    column_stride,
    num_fields,
    num_chunks,
    chunk_size,
    run_size,
    RUNS: tl.constexpr,
    ENTRIES: tl.constexpr,
    CLIP: tl.constexpr,
):
    """Rank ENTRIES entries of a column among the entries of their group: RUNS runs of run_size entries.

    CLIP: the group is the whole column, so clip the values. Otherwise merge the group into one run.
    """
    WIDE: tl.constexpr = x_ptr.dtype.element_ty == tl.float64
    num_blocks = tl.cdiv(num_chunks, ENTRIES)
    program = tl.program_id(0)
    block = program % num_blocks
    segment = (program // num_blocks).to(tl.int64)  # a column of a vector
    key_ptr += segment * num_chunks
    index_ptr += segment * num_chunks

    place = block * ENTRIES + tl.arange(0, ENTRIES)
    present = place < num_chunks
    key = tl.load(key_ptr + place, mask=present, other=LAST)
    index = key
    if WIDE:
        index = tl.load(index_ptr + place, mask=present, other=0)

    group_begin = block * ENTRIES // (RUNS * run_size) * (RUNS * run_size)
    begin = group_begin + tl.arange(0, RUNS)[:, None] * run_size
    length = tl.minimum(num_chunks - begin, run_size)
    # Rank of each entry in each run. Its binary digits are found from the highest on.
    rank = tl.zeros([RUNS, ENTRIES], tl.int32)
    step = run_size
    while step > 0:
        probe = rank + step
        inside = probe <= length
        other = begin + probe - 1
        other_key = tl.load(key_ptr + other, mask=inside, other=LAST)
        other_index = other_key
        if WIDE:
            other_index = tl.load(index_ptr + other, mask=inside, other=0)
        rank = tl.where(
            inside & precedes(other_key, other_index, key[None, :], index[None, :], WIDE), probe, rank
        )
        step = step // 2
    rank = group_begin + tl.sum(rank, axis=0)

    if CLIP:
        vector = segment // chunk_size
        clip_entries(
            x_ptr, out_ptr, lower_ptr, upper_ptr, field_stride, row_stride, column_stride, vector, num_fields,
            vector * (num_chunks * chunk_size), index_of(key, index, WIDE), rank, segment % chunk_size,
            present,
        )  # fmt: skip
    else:
        tl.store(merged_key_ptr + segment * num_chunks + rank, key, mask=present)
        if WIDE:
            tl.store(merged_index_ptr + segment * num_chunks + rank, index, mask=present)


class _Entries(NamedTuple):
    """Entries of vectors, (V, N): int64 keys, and int32 indices if the keys do not contain them (see
    `sorting`).
    """

    keys: Tensor
    indices: Tensor

    @staticmethod
    def like(x: Tensor) -> "_Entries":
        keys = torch.empty(x.shape, dtype=torch.int64, device=x.device)
        return _Entries(keys, torch.empty_like(keys, dtype=torch.int32) if x.dtype == torch.float64 else keys)


def project_2os(x: Tensor, tables: FieldTables) -> Tensor:
    """Sort, clip and unsort contiguous vectors (V, M*D), float32 or float64, by tables of their dtype."""
    _, num_chunks, chunk_size = tables.lower.shape
    out = torch.empty_like(x)
    if chunk_size <= LAUNCH_TABLE["sort_runs_kernel"]["chunk"]:
        _sort_columns(x, num_chunks, chunk_size, None, (out, tables))
    else:
        chunks = _sort_columns(x, chunk_size, 1, None, None)  # each chunk is a vector of one column
        _sort_columns(x, num_chunks, chunk_size, chunks, (out, tables))
    return out


def _sort_columns(
    x: Tensor,
    num_chunks: int,
    chunk_size: int,
    chunks: _Entries | None,
    clip: tuple[Tensor, FieldTables] | None,
) -> _Entries:
    """Sort every chunk, unless `chunks` has the entries of sorted chunks. Then sort every column.

    With `clip` (out, tables) the values are clipped and written to `out`. Otherwise the sorted entries are
    returned, column by column.
    """
    unused = _Entries(x, x)
    out, tables = clip or (x, FieldTables(x.view(1, 1, -1), x.view(1, 1, -1)))
    strides = tables.lower.stride() if clip else None
    plan = _plan(x.numel(), x.dtype, num_chunks, chunk_size, chunks is not None, strides, len(tables.lower))
    runs = unused if clip and not plan.ranks else _Entries.like(x)
    plan.sort(x, *(chunks or unused), *runs, out, *tables)
    for rank in plan.ranks:
        merged = unused if clip and rank is plan.ranks[-1] else _Entries.like(x)
        rank(x, *runs, *merged, out, *tables)
        runs = merged
    return runs


class _Plan(NamedTuple):
    """One launch of sort_runs_kernel, then the launches of rank_in_runs_kernel."""

    sort: Launch
    ranks: tuple[Launch, ...]


@planned
def _plan(
    size: int,
    dtype: torch.dtype,
    num_chunks: int,
    chunk_size: int,
    sorted_chunks: bool,
    strides: tuple[int, ...] | None,
    num_fields: int,
) -> _Plan:
    """Return the launches for vectors of `size` values in total.

    strides: strides of the tables, or None if the values are not clipped.
    """
    table = LAUNCH_TABLE["sort_runs_kernel"]
    rows, columns = power_of_two(num_chunks), power_of_two(chunk_size)
    run_size = min(rows, table["entries"], rows if sorted_chunks else table["values"] // columns)
    columns_at_once = min(columns, max(1, table["entries"] // run_size))
    bits = (ceil_div(num_chunks, run_size) - 1).bit_length()  # bits of the number of a run
    num_vectors = size // (num_chunks * chunk_size)
    scalars = (*(strides or (0, 0, 0)), num_fields, num_chunks, chunk_size)
    sort = Launch(
        sort_runs_kernel,
        num_vectors * ceil_div(num_chunks, run_size) * ceil_div(chunk_size, columns_at_once),
        *scalars,
        ROWS=run_size,
        CHUNK=1 if sorted_chunks else columns,
        COLUMNS=columns_at_once,
        SORTED_CHUNKS=sorted_chunks,
        COMPLETE=strides is not None and bits == 0,
    )
    table = LAUNCH_TABLE["rank_in_runs_kernel"]
    ranks = []
    for level in reversed(range(ceil_div(bits, table["runs"].bit_length() - 1))):
        group_bits = ceil_div(bits, level + 1)
        entries = min(run_size, table["lookups"] >> group_bits)
        rank = Launch(
            rank_in_runs_kernel,
            num_vectors * chunk_size * ceil_div(num_chunks, entries),
            *scalars,
            run_size,
            RUNS=2**group_bits,
            ENTRIES=entries,
            CLIP=strides is not None and level == 0,
        )
        ranks.append(rank)
        run_size, bits = run_size << group_bits, bits - group_bits
    return _Plan(sort, tuple(ranks))
