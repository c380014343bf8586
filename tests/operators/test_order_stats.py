"""Two-level order statistics: bits of the reference, and propositions of the paper."""

import itertools

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from bits import assert_same_bits, bit_patterns
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import DISTRIBUTIONS, TABLES, negative_nan, noise, tables, values
from torch import Tensor

import noisetilt_kernels as nt
from noisetilt_kernels import python_ref

project_2os = torch.ops.noisetilt.project_2os

REAL = (torch.float32, torch.float64)
CHUNK_SIZES = (1, 2, 3, 4, 5, 8, 12, 16, 17, 32, 64, 100)
# around the sizes of lanes, insertion sort, radix sort and buckets
NUM_CHUNKS = (1, 2, 3, 7, 8, 9, 24, 25, 33, 100, 1031, 4200)

LAYOUTS = {
    "rows": lambda table: table.contiguous(),
    "columns": lambda table: table.t().contiguous().t(),
    "every other": lambda table: table.repeat_interleave(2, dim=0).repeat_interleave(3, dim=1)[::2, ::3],
    "inside a larger one": lambda table: torch.nn.functional.pad(table, (1, 2, 3, 1), value=torch.nan)[
        3:-1, 1:-2
    ],
}


def check(x: Tensor, lower: Tensor, upper: Tensor, context: str = "") -> Tensor:
    """Project samples (B, N) and compare the bits with the reference."""
    result = project_2os(x, lower, upper)
    assert_same_bits(result, python_ref.project_2os(x, lower, upper), context)
    return result


# ---- equality with the reference ----


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_distribution(distribution: str, chunk_size: int, dtype: torch.dtype) -> None:
    for num_chunks, name in zip(NUM_CHUNKS, itertools.cycle(TABLES), strict=False):
        if num_chunks * chunk_size > 50_000:
            continue
        x = values(distribution, (2, num_chunks * chunk_size), dtype, seed=chunk_size)
        for kind in {name, "typical" if num_chunks < 200 else "monotone", "unsorted"}:
            check(
                x, *tables(kind, num_chunks, chunk_size, dtype), f"{num_chunks}x{chunk_size}, {kind} tables"
            )


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("distribution", ["normal", "few values", "everything", "1/k", "one outlier"])
def test_every_kind_of_table(table: str, distribution: str) -> None:
    for num_chunks, chunk_size in [(1, 1), (5, 4), (64, 16), (333, 2), (1000, 4), (200, 20)]:
        x = values(distribution, (2, num_chunks * chunk_size), seed=3)
        check(x, *tables(table, num_chunks, chunk_size), f"{num_chunks}x{chunk_size}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("table", ["typical", "unsorted"])
@pytest.mark.parametrize("dtype", REAL)
def test_table_layouts(layout: str, table: str, dtype: torch.dtype) -> None:
    x = values("1/k", (2, 1200), dtype)
    for num_chunks, chunk_size in [(300, 4), (75, 16), (240, 5), (1, 1200), (1200, 1)]:
        lower, upper = tables(table, num_chunks, chunk_size, dtype)
        expected = python_ref.project_2os(x, lower, upper)
        laid_out = LAYOUTS[layout](lower), LAYOUTS[layout](upper)
        assert_same_bits(project_2os(x, *laid_out), expected, f"{num_chunks}x{chunk_size}")
        # the layouts of lower and upper may differ
        assert_same_bits(project_2os(x, laid_out[0], upper), expected, f"{num_chunks}x{chunk_size}, mixed")


def test_expanded_tables() -> None:
    x = values("normal", (3, 400))
    lower, upper = torch.tensor([[-0.5, -0.25, 0.0, 0.25]]), torch.tensor([[-0.1, 0.25, 0.3, 0.75]])
    check(x, lower.expand(100, 4), upper.expand(100, 4), "one row for all ranks")
    check(x, lower.t().expand(4, 100), upper.t().expand(4, 100), "one column for all ranks")


LARGE = [
    (131_072, 1),
    (131_072, 4),
    (131_072, 16),
    (16_384, 4),
    (4_096, 16),
    (30_000, 3),
    (2_048, 32),
    (1, 131_072),
]


@pytest.mark.parametrize("distribution", ["normal", "few values", "1/k", "one outlier", "everything"])
@pytest.mark.parametrize(("num_chunks", "chunk_size"), LARGE)
def test_large_samples(num_chunks: int, chunk_size: int, distribution: str) -> None:
    x = values(distribution, (1, num_chunks * chunk_size))
    lower, upper = nt.confidence_table(num_chunks, chunk_size)
    check(x, lower.float(), upper.float())


@pytest.mark.parametrize("distribution", ["normal", "few values", "everything"])
@pytest.mark.parametrize("dtype", REAL)
def test_large_samples_with_unsorted_tables(distribution: str, dtype: torch.dtype) -> None:
    x = values(distribution, (1, 80_000), dtype)
    check(x, *tables("unsorted", 20_000, 4, dtype))
    check(x, *tables("unsorted", 5_000, 16, dtype))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("chunk_size", [1, 3, 4, 16])
def test_values_at_entries_of_the_table(chunk_size: int, dtype: torch.dtype) -> None:
    """Test values at an entry of the table and one step beside it: a shortcut by ranges would fail here."""
    for num_chunks in (9, 150, 4000):
        lower, upper = tables("typical", num_chunks, chunk_size, dtype)
        generator = torch.Generator().manual_seed(num_chunks)
        edge = torch.where(torch.rand(lower.shape, generator=generator) < 0.5, lower, upper).flatten()
        step = torch.randint(-1, 2, edge.shape, generator=generator) * torch.inf
        x = torch.where(step.isnan(), edge, torch.nextafter(edge, step.to(dtype)))
        order = torch.randperm(num_chunks, generator=generator)
        for y in (
            x,
            x.view(num_chunks, chunk_size)[order].flatten(),
            x[torch.randperm(len(x), generator=generator)],
        ):
            check(y[None], lower, upper, f"{num_chunks} chunks")


@pytest.mark.parametrize("dtype", REAL)
def test_an_interval_of_many_orders_of_magnitude(dtype: torch.dtype) -> None:
    """Clusters far apart, each with fine structure and ties."""
    exponents = torch.arange(-30, 31, 10).repeat_interleave(600)
    x = 10.0 ** exponents.to(dtype) * values("few values", len(exponents), dtype)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))][None]
    for chunk_size in (1, 4, 8):
        check(x, *tables("monotone", x.shape[1] // chunk_size, chunk_size, dtype), f"chunks of {chunk_size}")


@pytest.mark.parametrize(("num_chunks", "chunk_size"), [(64, 4), (40, 16), (37, 5)])
def test_one_special_value_at_any_place(num_chunks: int, chunk_size: int) -> None:
    size = num_chunks * chunk_size
    x = values("normal", (size, size))
    for special in (torch.nan, negative_nan(torch.float32), torch.inf, -torch.inf, -0.0, 1e-45):
        x.diagonal().copy_(torch.as_tensor(special).expand(size))
        check(x, *tables("typical", num_chunks, chunk_size), str(special))


SPECIALS = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 0.5, 3.4e38, -3.4e38]


@st.composite
def small_problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Draw samples and a table (lower, upper) from one small set of numbers, so that there are many ties."""
    num_chunks, chunk_size = draw(st.integers(1, 40)), draw(st.integers(1, 18))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    alphabet = draw(st.lists(st.one_of(st.sampled_from(SPECIALS), finite), min_size=1, max_size=6))
    numbers = [number for number in alphabet if number == number] or [0.0]

    def array(elements: list[float], shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(draw(hnp.arrays(np.float32, shape, elements=st.sampled_from(elements))))

    x = array(alphabet, (draw(st.integers(1, 2)), num_chunks * chunk_size))
    a, b = array(numbers, (num_chunks, chunk_size)), array(numbers, (num_chunks, chunk_size))
    lower, upper = torch.where(a <= b, a, b), torch.where(a <= b, b, a)
    if draw(st.booleans()):
        lower, upper = lower.sort(dim=0).values, upper.sort(dim=0).values
    return x, lower, upper


@settings(max_examples=300, deadline=None)
@given(small_problems())
def test_hypothesis_finds_no_small_difference(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    check(*problem)
    check(*(tensor.double() for tensor in problem))


@settings(max_examples=500, deadline=None)
@given(
    num_chunks=st.integers(1, 3000),
    chunk_size=st.sampled_from(CHUNK_SIZES[:10]),
    distribution=st.sampled_from(list(DISTRIBUTIONS)),
    scale=st.sampled_from([1.0, 1.0, 1e-3, 30.0]),
    table=st.sampled_from(list(TABLES)),
    layout=st.sampled_from(list(LAYOUTS)),
    dtype=st.sampled_from(REAL),
    seed=st.integers(0, 1000),
)
def test_hypothesis_finds_no_difference(
    num_chunks: int,
    chunk_size: int,
    distribution: str,
    scale: float,
    table: str,
    layout: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    num_chunks = max(1, num_chunks // chunk_size)
    x = values(distribution, (1, num_chunks * chunk_size), dtype, seed) * scale
    lower, upper = tables(table, num_chunks, chunk_size, dtype, seed)
    check(x, LAYOUTS[layout](lower), LAYOUTS[layout](upper))


# ---- batches, strides, dtypes, state ----


@pytest.mark.parametrize("dtype", REAL)
def test_batch_equals_singles(dtype: torch.dtype) -> None:
    x = torch.stack([values(name, 960, dtype) for name in DISTRIBUTIONS])
    lower, upper = tables("typical", 240, 4, dtype)
    batch = check(x, lower, upper)
    for sample, projected in zip(x, batch, strict=True):
        assert_same_bits(project_2os(sample, lower, upper), projected)


STRIDED = {
    "transposed": lambda x: x.t(),
    "expanded": lambda x: x[:1].expand(7, -1),
    "sliced": lambda x: x[1:, ::2],
    "offset": lambda x: x.flatten()[3 : 3 + 5 * 192].view(5, 192),
    "flipped": lambda x: x.flip(1),
}


@pytest.mark.parametrize("stride", STRIDED)
def test_strided_input(stride: str) -> None:
    x = STRIDED[stride](values("everything", (192, 192) if stride == "transposed" else (6, 384)))
    before = x.clone()
    lower, upper = tables("typical", x.shape[1] // 4, 4)
    result = project_2os(x, lower, upper)
    assert_same_bits(result, python_ref.project_2os(x.contiguous(), lower, upper))
    assert result.is_contiguous()
    assert_same_bits(x, before, "the input")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("distribution", ["normal", "everything", "few values"])
def test_half_precision_is_computed_in_float32_and_rounded_once(
    dtype: torch.dtype, distribution: str
) -> None:
    x = values(distribution, (2, 1024)).to(dtype)
    lower, upper = tables("typical", 256, 4)
    assert_same_bits(project_2os(x, lower, upper), python_ref.project_2os(x.float(), lower, upper).to(dtype))


def test_tables_that_change_in_place_are_read_again() -> None:
    x = values("normal", (1, 4000))
    lower, upper = tables("typical", 1000, 4)
    check(x, lower, upper, "sorted")
    for name in ("unsorted", "pinned", "monotone"):
        for table, new in zip((lower, upper), tables(name, 1000, 4), strict=True):
            table.copy_(new)
        check(x, lower, upper, name)
    x.neg_()
    check(x, lower, upper, "changed samples")


# ---- definition ----


def test_definition_by_hand() -> None:
    """Two chunks: the sorted rows are (1,5) and (2,3), the columns rank 1<2 and 3<5."""
    x = torch.tensor([[5.0, 1.0, 2.0, 3.0]])
    lower = torch.tensor([[1.5, 3.5], [1.5, 4.0]])
    upper = torch.tensor([[1.75, 3.75], [1.875, 4.5]])
    assert project_2os(x, lower, upper).tolist() == [[4.5, 1.5, 1.875, 3.5]]


def test_equal_values_are_ranked_in_order_of_index() -> None:
    x = torch.zeros(1, 6)
    lower, upper = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.full((3, 2), 9.0)
    assert project_2os(x, lower, upper).tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]
    x[0, 1::2] = -0.0  # equal to +0, so the order stays
    assert project_2os(x, lower, upper).tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]


@pytest.mark.parametrize("sign", [1, -1])
def test_nan_is_last_and_kept_and_infinities_are_clipped(sign: int) -> None:
    nan = torch.nan if sign == 1 else negative_nan(torch.float32)
    x = torch.tensor([[0.0, torch.inf, -torch.inf, 1.0]])
    x[0, 0] = nan
    lower, upper = torch.full((1, 4), -3.0), torch.tensor([[-2.0, 2.0, 4.0, 5.0]])
    result = project_2os(x, lower, upper)
    assert result[0, 0].isnan()
    assert result[0, 1:].tolist() == [4.0, -3.0, 1.0]


# ---- propositions ----
#
# A column has the j-th smallest values of all chunks. Sort-clip-unsort is the Euclidean projection of every
# column onto {v : L[:, j] <= sort(v) <= U[:, j]}. It is the projection onto {Y : L <= sort_0(sort_1(Y)) <= U}
# if the clipped chunks keep their order, as noise does. If ranks inside one chunk differ very much (for
# example the smallest first value and the largest second value), clipping can exchange neighbours. Then the
# result is nearer than any point of that set.


def sort_twice(x: Tensor, num_chunks: int, chunk_size: int) -> Tensor:
    """Two-level order statistics (B, M, D) of samples (B, N)."""
    return x.view(-1, num_chunks, chunk_size).sort(dim=2).values.sort(dim=1).values


def in_order_of(x: Tensor, y: Tensor, chunk_size: int) -> Tensor:
    """y (B, N) as chunks (B, M, D), each arranged in the ascending order of x's chunk."""
    chunks = x.view(x.shape[0], -1, chunk_size)
    return y.view_as(chunks).gather(2, chunks.argsort(dim=2, stable=True))


FINITE = [
    "normal",
    "constant",
    "few values",
    "sorted",
    "reversed",
    "huge",
    "infinities",
    "1/k",
    "spikes",
    "shifted",
]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("distribution", FINITE)
@pytest.mark.parametrize(("num_chunks", "chunk_size"), [(512, 4), (128, 16), (100, 5), (2048, 1), (1, 300)])
def test_result_is_inside_the_table(
    num_chunks: int, chunk_size: int, distribution: str, dtype: torch.dtype
) -> None:
    lower, upper = tables("typical", num_chunks, chunk_size, dtype)
    x = values(distribution, (2, num_chunks * chunk_size), dtype)
    projected = project_2os(x, lower, upper)

    columns = in_order_of(x, projected, chunk_size).sort(dim=1).values
    assert bool(((columns >= lower) & (columns <= upper)).all())

    in_order = (in_order_of(x, projected, chunk_size).diff(dim=2) >= 0).flatten(1).all(dim=1)
    if distribution in ("normal", "sorted", "reversed") or 1 in (num_chunks, chunk_size):
        assert bool(in_order.all())
    projected = projected[in_order]
    statistics = sort_twice(projected, num_chunks, chunk_size)
    assert bool(((statistics >= lower) & (statistics <= upper)).all())
    assert_same_bits(project_2os(projected, lower, upper), projected, "twice is once")


def test_inside_the_set_nothing_changes() -> None:
    """Not even the sign of a zero changes."""
    lower, upper = tables("typical", 256, 4)
    inside = project_2os(values("normal", (4, 1024)), lower, upper)
    inside[inside.abs() < 1e-3] = -0.0
    inside[:, :8] = torch.tensor([0.0, -0.0]).repeat(4)
    inside = project_2os(inside, lower, upper)
    assert bool((bit_patterns(inside) == bit_patterns(torch.tensor(-0.0))).any())
    assert_same_bits(project_2os(inside, lower, upper), inside)


@pytest.mark.parametrize(("num_chunks", "chunk_size"), [(16_384, 4), (4_096, 16)])
def test_noise_is_hardly_changed(num_chunks: int, chunk_size: int) -> None:
    x = noise(100, (num_chunks * chunk_size,))
    lower, upper = nt.confidence_table(num_chunks, chunk_size)
    changed = project_2os(x, lower.float(), upper.float()) != x
    # Each bound is passed with probability 1e-3. Neighbouring ranks pass together, so seeds vary widely.
    assert float(changed.double().mean()) < 3e-3
    assert float(changed.double().mean(dim=1).max()) < 0.06


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("num_chunks", "chunk_size"), [(6, 1), (5, 3), (4, 8)])
def test_no_other_ranking_of_a_column_is_nearer(num_chunks: int, chunk_size: int, seed: int) -> None:
    """Compare with a search over all assignments of ranks. Each of them clips to points of the set."""
    lower, upper = tables("monotone", num_chunks, chunk_size, torch.float64, seed)
    x = values("few values" if seed < 2 else "normal", (1, num_chunks * chunk_size), torch.float64, seed)
    columns = in_order_of(x, x, chunk_size)[0]
    nearest = torch.full((chunk_size,), torch.inf, dtype=torch.float64)
    for ranks in itertools.permutations(range(num_chunks)):
        clipped = columns.clamp(lower[list(ranks)], upper[list(ranks)])
        nearest = torch.minimum(nearest, (clipped - columns).square().sum(dim=0))
    moved = in_order_of(x, project_2os(x, lower, upper), chunk_size)[0] - columns
    torch.testing.assert_close(moved.square().sum(dim=0), nearest, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "distribution", ["normal", "constant", "few values", "sorted", "1/k", "shifted", "spikes"]
)
def test_no_random_feasible_point_is_nearer(distribution: str) -> None:
    lower, upper = tables("typical", 64, 4, torch.float64)
    x = values(distribution, (1, 256), torch.float64)
    nearest = project_2os(x, lower, upper)
    feasible = 0
    for spread in (1e-6, 1e-3, 1e-1, 1.0):
        others = project_2os(nearest + spread * noise(200, (256,), torch.float64), lower, upper)
        statistics = sort_twice(others, 64, 4)
        inside = ((statistics >= lower) & (statistics <= upper)).flatten(1).all(dim=1)
        feasible += int(inside.sum())
        assert bool(((others[inside] - x).norm(dim=1) >= (nearest - x).norm() * (1 - 1e-14)).all())
    assert feasible > 0, "the test has found no feasible point to compare with"
