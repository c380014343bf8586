"""Two-level order statistics (2OS), DESIGN section 2: sort, clip, unsort.

A program sorts a block of chunks in registers: first each chunk, then each column of the block. A sorted part
of a column is a run. If a run is the whole column, its order gives the ranks, and the values are clipped at
once. A longer column has several runs. The rank of an entry is then the sum of its ranks in all runs, found
by binary search. If there are more runs than one program searches, groups of runs are merged into longer runs
first, in the same way. Chunks too long for a block are sorted beforehand, each like a column.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tables import Table
from .launch import LAUNCH_TABLE, Launch, ceil_div, planned, power_of_two
from .sorting import KEYS, LAST, entry_of, key_of, parts_of, sort_entries


class FieldTables(NamedTuple):
    """Tables of F fields, (F, M, D), both with the same strides. Vector v is clipped to the table of field v
    modulo F.
    """

    lower: Tensor
    upper: Tensor


class TablesInTurn(NamedTuple):
    """Tables of several chunk sizes, for 2OS projections in turn. `each` are views of `lower` and `upper`,
    (chunk sizes, F, N), column-major.
    """

    each: tuple[FieldTables, ...]
    lower: Tensor
    upper: Tensor


def tables_in_turn(tables: Sequence[Sequence[Table]]) -> TablesInTurn:
    """Arrange tables for the kernels. For each chunk size, `tables` has those of all fields."""
    if not tables:
        return TablesInTurn((), torch.empty(0), torch.empty(0))
    shapes = [fields[0].lower.t().shape for fields in tables]

    def stacked(sides: list[list[Tensor]]) -> tuple[Tensor, list[Tensor]]:
        """One tensor of all sides, and a view of it for each chunk size."""
        every = torch.stack([torch.stack([bounds.t().flatten() for bounds in fields]) for fields in sides])
        return every, [part.view(-1, *shape).mT for part, shape in zip(every, shapes, strict=True)]

    lower, each_lower = stacked([[table.lower for table in fields] for fields in tables])
    upper, each_upper = stacked([[table.upper for table in fields] for fields in tables])
    return TablesInTurn(tuple(map(FieldTables, each_lower, each_upper)), lower, upper)


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
    chunk_stride,
    num_runs,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    SORTED_CHUNKS: tl.constexpr,
    COMPLETE: tl.constexpr,
):
    """Sort ROWS chunks of one vector, then the entries of COLUMNS of their columns.

    CHUNK: size of a chunk, padded to a power of two. SORTED_CHUNKS: read the entries of sorted chunks, which
    are chunk_stride apart, instead of values. COMPLETE: the rows are the whole column, so clip the values.
    Otherwise write the entries of column j to num_runs * ROWS places, column by column. Padding is last.
    """
    WIDE: tl.constexpr = x_ptr.dtype.element_ty == tl.float64
    num_groups = tl.cdiv(chunk_size, COLUMNS)
    program = tl.program_id(0)
    group = program % num_groups
    run = program // num_groups % num_runs
    vector = (program // num_groups // num_runs).to(tl.int64)
    base = vector * (num_chunks * chunk_size)

    i = tl.arange(0, ROWS * COLUMNS)
    row, column = run * ROWS + i // COLUMNS, group * COLUMNS + i % COLUMNS
    present = (row < num_chunks) & (column < chunk_size)
    if SORTED_CHUNKS:
        place = vector * num_chunks * chunk_stride + row.to(tl.int64) * chunk_stride + column
        key = tl.load(chunk_key_ptr + place, mask=present, other=0)
        index = row * chunk_size + tl.load(chunk_index_ptr + place, mask=present, other=0)
        key, index = entry_of(key, index, WIDE)
        key = tl.where(present, key, LAST)
    else:
        k = tl.arange(0, ROWS * CHUNK)
        chunk, place = run * ROWS + k // CHUNK, k % CHUNK
        there = (chunk < num_chunks) & (place < chunk_size)
        position = chunk * chunk_size + place
        x = tl.load(x_ptr + base + position, mask=there, other=0)
        key, index = entry_of(key_of(x), position, WIDE)
        key, index = sort_entries(tl.where(there, key, LAST), index, 1, CHUNK, WIDE)
        key = _columns(key, group, ROWS, CHUNK, COLUMNS)
        index = _columns(index, group, ROWS, CHUNK, COLUMNS) if WIDE else key

    key, index = sort_entries(key, index, COLUMNS, ROWS, WIDE)
    key, index = parts_of(key, index, WIDE)
    if COMPLETE:
        clip_entries(
            x_ptr, out_ptr, lower_ptr, upper_ptr, field_stride, row_stride, column_stride, vector, num_fields,
            base, index, row, column, present,
        )  # fmt: skip
    else:
        target = (vector * chunk_size + column) * (num_runs * ROWS) + row
        tl.store(run_key_ptr + target, key, mask=column < chunk_size)
        tl.store(run_index_ptr + target, index, mask=column < chunk_size)


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
    num_runs,
    RUN_SIZE: tl.constexpr,
    RUNS: tl.constexpr,
    ENTRIES: tl.constexpr,
    CLIP: tl.constexpr,
):
    """Rank ENTRIES entries of a column among the entries of their group: RUNS runs of RUN_SIZE entries.

    CLIP: the group is the whole column, so clip the values. Otherwise merge the group into one run.
    """
    num_blocks = num_runs * (RUN_SIZE // ENTRIES)
    program = tl.program_id(0)
    block = program % num_blocks
    segment = (program // num_blocks).to(tl.int64)  # a column of a vector
    key_ptr += segment * num_runs * RUN_SIZE
    index_ptr += segment * num_runs * RUN_SIZE

    place = block * ENTRIES + tl.arange(0, ENTRIES)
    present = place < num_chunks
    key = tl.load(key_ptr + place)
    index = tl.load(index_ptr + place)

    own_run = block // (RUN_SIZE // ENTRIES)
    run = own_run // RUNS * RUNS + tl.arange(0, RUNS)[:, None]
    # Runs are in the order of the indices. Equal keys of earlier runs come first, those of later runs do not.
    limit = key[None, :] + tl.where(run < own_run, 1, 0)
    begin = key_ptr + tl.minimum(run, num_runs - 1) * RUN_SIZE
    # Number of entries of each run that come before an entry, by binary search for the first that does not.
    found = tl.broadcast_to(begin, [RUNS, ENTRIES])
    LOG_RUN_SIZE: tl.constexpr = RUN_SIZE.bit_length() - 1
    for k in tl.static_range(LOG_RUN_SIZE):
        found = _advanced(found, limit, RUN_SIZE >> (k + 1))
    found = _advanced(found, limit, 1)
    KEY_BYTES: tl.constexpr = key_ptr.dtype.element_ty.primitive_bitwidth // 8
    count = ((found.to(tl.int64) - begin.to(tl.int64)) // KEY_BYTES).to(tl.int32)
    others = (run != own_run) & (run < num_runs)
    rank = place - own_run % RUNS * RUN_SIZE + tl.sum(tl.where(others, count, 0), axis=0)

    if CLIP:
        vector = segment // chunk_size
        clip_entries(
            x_ptr, out_ptr, lower_ptr, upper_ptr, field_stride, row_stride, column_stride, vector, num_fields,
            vector * (num_chunks * chunk_size), index, rank, segment % chunk_size, present,
        )  # fmt: skip
    else:
        rank = tl.where(present, rank, place)  # padding stays last
        tl.store(merged_key_ptr + segment * num_runs * RUN_SIZE + rank, key)
        tl.store(merged_index_ptr + segment * num_runs * RUN_SIZE + rank, index)


@triton.jit
def _advanced(found, limit, STEP: tl.constexpr):
    """Advance pointers to sorted keys by STEP where the keys up to there are less than the limit."""
    return tl.where(tl.load(found + (STEP - 1)) < limit, found + STEP, found)


@triton.jit
def project_vectors_kernel(
    x_ptr, out_ptr, lower_ptr, upper_ptr, num_fields, SIZE: tl.constexpr, CHUNK_SIZES: tl.constexpr
):
    """Project a vector of SIZE values, with one chunk size after the other."""
    vector = tl.program_id(0).to(tl.int64)
    for k in tl.static_range(len(CHUNK_SIZES)):
        if k > 0:
            tl.debug_barrier()  # the result of the last projection is in memory
        _project_vector(
            out_ptr if k > 0 else x_ptr, out_ptr, lower_ptr + k * num_fields * SIZE,
            upper_ptr + k * num_fields * SIZE, vector, num_fields, SIZE, CHUNK_SIZES[k], k > 0,
        )  # fmt: skip


@triton.jit
def _project_vector(
    x_ptr,
    out_ptr,
    lower_ptr,
    upper_ptr,
    vector,
    num_fields,
    SIZE: tl.constexpr,
    CHUNK_SIZE: tl.constexpr,
    IN_PLACE: tl.constexpr,
):
    """Sort, clip and unsort a vector that one program holds. IN_PLACE: out_ptr is x_ptr."""
    WIDE: tl.constexpr = x_ptr.dtype.element_ty == tl.float64
    NUM_CHUNKS: tl.constexpr = SIZE // CHUNK_SIZE
    ROWS: tl.constexpr = triton.next_power_of_2(NUM_CHUNKS)
    COLUMNS: tl.constexpr = triton.next_power_of_2(CHUNK_SIZE)
    i = tl.arange(0, ROWS * COLUMNS)
    row, column = i // COLUMNS, i % COLUMNS
    present = (row < NUM_CHUNKS) & (column < CHUNK_SIZE)
    position = row * CHUNK_SIZE + column
    x = tl.load(x_ptr + vector * SIZE + position, mask=present, other=0)
    key, index = entry_of(key_of(x), position, WIDE)
    key, index = sort_entries(tl.where(present, key, LAST), index, 1, COLUMNS, WIDE)
    key, index = sort_entries(key, index, COLUMNS, ROWS, WIDE)
    key, index = parts_of(key, index, WIDE)
    if IN_PLACE:
        tl.debug_barrier()  # no warp still reads: where values are few, all warps sort them
    clip_entries(
        x_ptr, out_ptr, lower_ptr, upper_ptr, SIZE, 1, NUM_CHUNKS, vector, num_fields, vector * SIZE, index,
        row, column, present,
    )  # fmt: skip


class _Entries(NamedTuple):
    """Sorted entries of columns, (columns, places): keys, and indices of the values in their vectors."""

    keys: Tensor
    indices: Tensor

    @staticmethod
    def of(x: Tensor, columns: int, places: int) -> "_Entries":
        """Uninitialised entries of the values x."""
        keys = x.new_empty(columns, places, dtype=KEYS[x.dtype])
        return _Entries(keys, torch.empty_like(keys, dtype=torch.int32))


def project_in_turn(x: Tensor, tables: TablesInTurn) -> Tensor:
    """Project contiguous vectors (V, N) with one chunk size after the other."""
    vectors, size = x.shape
    launch = _in_one_launch(vectors, size, x.dtype, *(tuple(t.lower.shape) for t in tables.each))
    if launch is not None:
        out = torch.empty_like(x)
        launch(x, out, tables.lower, tables.upper)
        return out
    for field_tables in tables.each:
        x = project_2os(x, field_tables)
    return x


@planned
def _in_one_launch(vectors: int, size: int, dtype: torch.dtype, *shapes: tuple[int, ...]) -> Launch | None:
    """Return the launch for vectors that are sorted by one program each with tables of these shapes, or None
    if they are too long.
    """
    most = LAUNCH_TABLE["project_vectors_kernel"]["entries"]
    if not shapes or any(power_of_two(m) * power_of_two(d) > most for _, m, d in shapes):
        return None
    chunk_sizes = tuple(chunk_size for _, _, chunk_size in shapes)
    return Launch(project_vectors_kernel, vectors, shapes[0][0], SIZE=size, CHUNK_SIZES=chunk_sizes)


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

    With `clip` (out, tables) the values are clipped and written to `out`. Otherwise the sorted entries of the
    columns are returned.
    """
    unused = _Entries(x, x)
    out, tables = clip or (x, FieldTables(x.view(1, 1, -1), x.view(1, 1, -1)))
    strides = tables.lower.stride() if clip else None
    chunk_stride = chunks.keys.shape[1] if chunks else 0
    plan = _plan(x.numel(), x.dtype, num_chunks, chunk_size, chunk_stride, strides, len(tables.lower))
    columns = x.numel() // num_chunks
    runs = unused if clip and not plan.ranks else _Entries.of(x, columns, plan.places)
    plan.sort(x, *(chunks or unused), *runs, out, *tables)
    for rank in plan.ranks:
        merged = unused if clip and rank is plan.ranks[-1] else _Entries.of(x, columns, plan.places)
        rank(x, *runs, *merged, out, *tables)
        runs = merged
    return runs


class _Plan(NamedTuple):
    """One launch of sort_runs_kernel, then the launches of rank_in_runs_kernel.

    places: number of entries of a column in memory, a multiple of the size of the longest runs.
    """

    places: int
    sort: Launch
    ranks: tuple[Launch, ...]


@planned
def _plan(
    size: int,
    dtype: torch.dtype,
    num_chunks: int,
    chunk_size: int,
    chunk_stride: int,
    strides: tuple[int, ...] | None,
    num_fields: int,
) -> _Plan:
    """Return the launches for vectors of `size` values in total.

    chunk_stride: places of a sorted chunk, or 0 if chunks are not yet sorted. strides: strides of the tables,
    or None if the values are not clipped.
    """
    table, rank_table = LAUNCH_TABLE["sort_runs_kernel"], LAUNCH_TABLE["rank_in_runs_kernel"]
    rows, columns = power_of_two(num_chunks), power_of_two(chunk_size)
    run_size = min(rows, table["entries"], rows if chunk_stride else table["values"] // columns)
    num_vectors = size // (num_chunks * chunk_size)
    columns_at_once = min(columns, max(1, table["entries"] // run_size))
    # Programs that take other columns of the same chunks sort these again. So a program takes more columns,
    # if there are enough programs.
    programs = num_vectors * ceil_div(num_chunks, run_size) * ceil_div(columns, columns_at_once)
    while not chunk_stride and columns_at_once < columns and programs >= 2 * table["programs"]:
        columns_at_once, programs = 2 * columns_at_once, programs // 2
    bits = (ceil_div(num_chunks, run_size) - 1).bit_length()  # bits of the number of a run
    levels = []  # size of the runs, and bits of the number of runs in a group
    left, merged_size = bits, run_size
    for level in reversed(range(ceil_div(bits, rank_table["runs"].bit_length() - 1))):
        levels.append((merged_size, ceil_div(left, level + 1)))
        left, merged_size = left - levels[-1][1], merged_size << levels[-1][1]
    longest = levels[-1][0] if levels else run_size
    places = ceil_div(num_chunks, longest) * longest

    scalars = (*(strides or (0, 0, 0)), num_fields, num_chunks, chunk_size)
    sort = Launch(
        sort_runs_kernel,
        num_vectors * (places // run_size) * ceil_div(chunk_size, columns_at_once),
        *scalars,
        chunk_stride,
        places // run_size,
        ROWS=run_size,
        CHUNK=1 if chunk_stride else columns,
        COLUMNS=columns_at_once,
        SORTED_CHUNKS=chunk_stride > 0,
        COMPLETE=strides is not None and bits == 0,
    )
    ranks: list[Launch] = []
    for longest, group_bits in levels:
        entries = min(longest, rank_table["lookups"] >> group_bits)
        rank = Launch(
            rank_in_runs_kernel,
            num_vectors * chunk_size * (places // entries),
            *scalars,
            places // longest,
            RUN_SIZE=longest,
            RUNS=2**group_bits,
            ENTRIES=entries,
            CLIP=strides is not None and len(ranks) == len(levels) - 1,
        )
        ranks.append(rank)
    return _Plan(places, sort, tuple(ranks))
