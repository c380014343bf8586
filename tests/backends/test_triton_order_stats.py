"""The Triton kernels of two-level order statistics, interpreted, have the bits of the reference."""

from collections.abc import Callable

import pytest
import torch
from bits import assert_same_bits
from inputs import DISTRIBUTIONS, TABLES, tables, values
from torch import Tensor

from noisetilt_kernels import python_ref
from noisetilt_kernels.backends.tables import Table
from noisetilt_kernels.backends.triton import operations as kernels
from noisetilt_kernels.backends.triton import order_stats
from noisetilt_kernels.backends.triton.launch import Launch
from noisetilt_kernels.backends.triton.order_stats import FieldTables, TablesInTurn, tables_in_turn

REAL = (torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow))
SHORT = [(1, 1), (7, 1), (16, 4), (300, 4), (75, 16), (40, 5), (33, 33), (1, 64), (9, 33)]
LONG = [(260, 1), (150, 4), (65, 3), (40, 16), (5, 70), (2, 150), (1, 140), (33, 9)]


@pytest.fixture
def small_blocks(set_blocks: Callable[..., None]) -> None:
    """Set small blocks: columns have many runs, runs are merged repeatedly, chunks are sorted first."""
    set_blocks("sort_runs_kernel", values=128, entries=32, chunk=8)
    set_blocks("rank_in_runs_kernel", lookups=128, runs=4)
    set_blocks("project_vectors_kernel", entries=16)


def check(x: Tensor, lower: Tensor, upper: Tensor, context: str = "") -> None:
    actual = order_stats.project_2os(x, FieldTables(lower[None], upper[None]))
    assert_same_bits(actual, python_ref.project_2os(x, lower, upper), context)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("num_chunks", "chunk_size"), SHORT)
def test_columns_of_one_run(num_chunks: int, chunk_size: int, table: str, dtype: torch.dtype) -> None:
    pair = tables(table, num_chunks, chunk_size, dtype, num_chunks)
    x = torch.stack([values(name, num_chunks * chunk_size, dtype) for name in ("1/k", "everything")])
    check(x, *pair)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions(name: str, dtype: torch.dtype, small_blocks: None) -> None:
    for table, num_chunks, chunk_size in (("typical", 50, 4), ("unsorted", 20, 11)):
        x = values(name, (1, num_chunks * chunk_size), dtype, seed=num_chunks)
        check(x, *tables(table, num_chunks, chunk_size, dtype), f"{table}, {num_chunks}x{chunk_size}")


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(("num_chunks", "chunk_size"), LONG)
def test_columns_and_chunks_of_many_runs(
    num_chunks: int, chunk_size: int, dtype: torch.dtype, small_blocks: None
) -> None:
    check(
        values("everything", (1, num_chunks * chunk_size), dtype),
        *tables("unsorted", num_chunks, chunk_size, dtype),
    )


@pytest.mark.parametrize("runs", [2, 8, 16])
def test_groups_of_any_number_of_runs(runs: int, set_blocks: Callable[..., None]) -> None:
    set_blocks("sort_runs_kernel", values=64, entries=16)
    set_blocks("rank_in_runs_kernel", lookups=64, runs=runs)
    for num_chunks in (16, 17, 64, 150):
        check(values("bf16-quantised", (1, 2 * num_chunks)), *tables("unsorted", num_chunks, 2))


@pytest.mark.parametrize("dtype", REAL)
def test_programs_of_many_columns(dtype: torch.dtype, set_blocks: Callable[..., None]) -> None:
    """If there are enough programs, one takes several columns, or all."""
    for programs in (1, 4):
        set_blocks("sort_runs_kernel", values=128, entries=32, programs=programs)
        for num_chunks, chunk_size in ((70, 8), (75, 6), (33, 16)):
            sort = order_stats._plan(
                num_chunks * chunk_size, dtype, num_chunks, chunk_size, 0, (1, 1, 1), 1
            ).sort._constants
            assert sort["ROWS"] * sort["COLUMNS"] > 32
            check(
                values("everything", (1, num_chunks * chunk_size), dtype),
                *tables("unsorted", num_chunks, chunk_size, dtype),
            )


def in_turn(size: int, chunk_sizes: tuple[int, ...], fields: int, dtype: torch.dtype) -> TablesInTurn:
    every = [
        [Table(*tables("unsorted", size // d, d, dtype, seed=d + f), False) for f in range(fields)]
        for d in chunk_sizes
    ]
    return tables_in_turn(every)


@pytest.mark.parametrize("dtype", REAL)
def test_vectors_are_projected_with_every_chunk_size(
    dtype: torch.dtype, set_blocks: Callable[..., None]
) -> None:
    """The result is the same in one launch, where a program holds a vector, and in many."""
    for size, chunk_sizes in ((48, (4, 16)), (60, (5, 4, 12)), (64, (64,)), (36, (6,)), (7, ())):
        turn = in_turn(size, chunk_sizes, 2, dtype)
        x = values("everything", (4, size), dtype)
        expected = x
        for each in turn.each:
            expected = torch.cat(
                [
                    python_ref.project_2os(expected[v : v + 1], each.lower[v % 2], each.upper[v % 2])
                    for v in range(4)
                ]
            )
        shapes = [each.lower.shape for each in turn.each]
        for entries in (128, 16):
            set_blocks("project_vectors_kernel", entries=entries)
            one = order_stats._in_one_launch(4, size, dtype, *shapes) is not None
            assert one == (entries == 128 and size != 7)
            assert_same_bits(order_stats.project_in_turn(x, turn), expected, f"{size}, {chunk_sizes}")


@pytest.mark.slow
def test_flux_sized_columns() -> None:
    """Blocks have the sizes of the launch table."""
    for num_chunks, chunk_size in ((2050, 4), (300, 16)):
        check(values("1/k", (1, num_chunks * chunk_size)), *tables("typical", num_chunks, chunk_size))


@pytest.mark.slow
def test_vectors_use_the_tables_of_the_fields_in_turn(small_blocks: None) -> None:
    """Vector v is clipped to the table of field v modulo the number of fields."""
    for num_chunks, chunk_size in ((8, 4), (60, 4), (12, 20)):
        pairs = [tables("unsorted", num_chunks, chunk_size, seed=seed) for seed in range(3)]
        lower, upper = (torch.stack(side) for side in zip(*pairs, strict=True))
        x = values("normal", (6, num_chunks * chunk_size))
        expected = torch.cat([python_ref.project_2os(x[v : v + 1], *pairs[v % 3]) for v in range(6)])
        assert_same_bits(order_stats.project_2os(x, FieldTables(lower, upper)), expected)


def test_table_layouts(small_blocks: None) -> None:
    x = values("1/k", (2, 240))
    lower, upper = tables("unsorted", 60, 4)
    expected = python_ref.project_2os(x, lower, upper)
    padded = [torch.nn.functional.pad(t, (1, 2, 3, 1), value=torch.nan)[3:-1, 1:-2] for t in (lower, upper)]
    for pair in ((lower.t().contiguous().t(), upper.t().contiguous().t()), padded):
        assert_same_bits(order_stats.project_2os(x, FieldTables(*(t[None] for t in pair))), expected)


def test_runs_smaller_than_a_program(set_blocks: Callable[..., None]) -> None:
    set_blocks("sort_runs_kernel", values=16, entries=4)
    set_blocks("rank_in_runs_kernel", lookups=256, runs=2)
    check(values("everything", (1, 64)), *tables("unsorted", 64, 1))


def test_new_blocks_are_used_at_once(set_blocks: Callable[..., None]) -> None:
    arguments = 64, torch.float32, 64, 1, 0, (64, 1, 64), 1
    assert not order_stats._plan(*arguments).ranks
    set_blocks("sort_runs_kernel", values=16, entries=4)
    assert order_stats._plan(*arguments).ranks


def test_changed_tables_are_checked_again() -> None:
    x = values("normal", (1, 64))
    lower, upper = tables("typical", 16, 4)
    kernels.project_2os(x, lower, upper)
    for place, value, message in ((0, torch.nan, "NaN"), (0, 100.0, "exceed")):
        changed = lower.clone()
        changed.view(-1)[place] = value
        with pytest.raises(ValueError, match=message):
            kernels.project_2os(x, changed, upper)
        lower.copy_(changed)
        with pytest.raises(ValueError, match=message):
            kernels.project_2os(x, lower, upper)


def test_unaligned_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels get aligned memory only: otherwise Triton would compile them again."""
    real = Launch.__call__

    def checked(self: Launch, *tensors: Tensor) -> None:
        assert all(tensor.data_ptr() % 16 == 0 for tensor in tensors)
        real(self, *tensors)

    monkeypatch.setattr(Launch, "__call__", checked)
    x, tables_of = values("1/k", (1, 65)), tables("unsorted", 16, 4)
    lower, upper = (torch.cat([t.new_zeros(1), t.flatten()])[1:].view(16, 4) for t in tables_of)
    assert_same_bits(
        kernels.project_2os(x[:, 1:], lower, upper), python_ref.project_2os(x[:, 1:], *tables_of)
    )


def test_the_input_is_unchanged(small_blocks: None) -> None:
    x = values("1/k", (1, 240))
    before = x.clone()
    order_stats.project_2os(x, FieldTables(*(t[None] for t in tables("pinned", 60, 4))))
    assert_same_bits(x, before)
