"""Host plan of the projection kernel: slices, grid and buffers, without emulating a kernel."""

import math
import re
from types import ModuleType
from typing import Any

import pytest
from cuda_emulation.build import KERNELS, load

SOURCES = "".join(path.read_text() for path in sorted(KERNELS.glob("*.cuh")))

FLUX: dict[str, Any] = {
    "shape": [16, 64, 64],
    "chunk_sizes": [4, 16],
    "tile_sizes": [[4, 4], [8, 8], [16, 16]],
    "tile_chunk_sizes": [4, 16],
}
WAN: dict[str, Any] = {**FLUX, "shape": [336, 60, 104], "tile_sizes": [[4, 4], [12, 8]]}
LONG_CHUNKS: dict[str, Any] = {
    "shape": [3, 20, 20],
    "chunk_sizes": [100, 4],
    "tile_sizes": [[2, 2]],
    "tile_chunk_sizes": [50],
}
PROBLEMS: dict[str, dict[str, Any]] = {
    "flux": FLUX,
    "flux, mixing": {**FLUX, "mixing": [[64, 64, 12], [8, 8, 6]]},
    "wan, mixing": {**WAN, "mixing": [[60, 104, 2]]},
    "long chunks": LONG_CHUNKS,
    "one value": {"shape": [1, 1, 1], "chunk_sizes": [1]},
}
SIZES = {"one": (1, 64), "few": (4, 128), "large": (132, 1024)}  # multiprocessors, threads of a block


@pytest.fixture(scope="module")
def plans() -> ModuleType:
    return load("plan")


def samples(problem: dict[str, Any]) -> int:
    return math.prod(problem["shape"])


def bands(problem: dict[str, Any], tiles: list[list[int]]) -> list[int]:
    """Values that a slice must hold a multiple of, so that no tile is divided."""
    width = problem["shape"][2]
    return [h * w if h == 1 or w == width else h * width for h, w, *_ in tiles]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("device", SIZES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_slices_and_grid(plans: ModuleType, name: str, device: str, batch: int, dtype: str) -> None:
    problem, (num_sms, threads) = PROBLEMS[name], SIZES[device]
    limit, fixed = 227 << 10, 60_000
    plan = getattr(plans, f"plan_{dtype}")(
        **problem,
        batch=batch,
        num_sms=num_sms,
        max_block_threads=threads,
        max_shared_bytes=limit,
        fixed_shared_bytes=fixed,
    )
    size, slice_size, blocks = samples(problem), plan["slice_size"], plan["blocks_per_team"]
    assert (blocks - 1) * slice_size < size <= blocks * slice_size, "every block has values"
    assert all(slice_size % band == 0 for band in bands(problem, problem.get("tile_sizes", [])))
    counted = [size for size in problem["chunk_sizes"] if size <= 32]
    assert all(slice_size % chunk_size == 0 for chunk_size in counted)
    mixing = problem.get("mixing", [])
    assert plan["mixing_inside_blocks"] == [slice_size % band == 0 for band in bands(problem, mixing)]

    assert 1 <= plan["num_teams"] <= batch
    assert plan["num_teams"] * blocks <= num_sms, "all blocks are resident at once, one a multiprocessor"
    assert plan["block_threads"] == min(512, threads)
    item = 4 if dtype == "float32" else 8
    slices = (2 if mixing else 1) * slice_size * item if plan["slices_shared"] else 0
    assert plan["shared_bytes"] == fixed + slices <= limit


@pytest.mark.parametrize("name", PROBLEMS)
def test_tables_and_tiles(plans: ModuleType, name: str) -> None:
    problem = PROBLEMS[name]
    plan = plans.plan_float32(**problem)
    values, tiles = problem["chunk_sizes"], problem.get("tile_sizes", [])
    tile_chunk_sizes = problem.get("tile_chunk_sizes", [])
    steps = list(range(len(values)))
    counts = [(samples(problem) // chunk_size, chunk_size, True) for chunk_size in values]
    first_tile, planned = 0, []
    for k, (height, width) in enumerate(tiles):
        in_sample = samples(problem) // (height * width)
        first_step = len(values) + k * (len(tile_chunk_sizes) + 1)
        planned.append(
            (first_tile, len(tile_chunk_sizes), len(steps), first_step, max(tile_chunk_sizes) <= 32)
        )
        for i, chunk_size in enumerate(tile_chunk_sizes):
            steps += [first_step + i] * 2  # means and energies
            counted = not plans.is_tiny(in_sample // chunk_size, chunk_size)
            counts += [(in_sample // chunk_size, chunk_size, counted)] * 2
        first_tile += in_sample
    assert plan["steps"] == steps
    assert plan["tiles"] == planned
    counters = [size * plans.num_buckets(chunks, size) * counted for chunks, size, counted in counts]
    assert plan["first_counters"] == [sum(counters[:k]) for k in range(len(counters))]
    columns = [size if size <= 32 else 0 for _, size, _ in counts]
    assert plan["first_columns"] == [sum(columns[:k]) for k in range(len(columns))]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("max_shared_bytes", [61_000, 227 << 10])
@pytest.mark.parametrize("name", PROBLEMS)
def test_buffers_do_not_overlap(plans: ModuleType, name: str, max_shared_bytes: int, dtype: str) -> None:
    problem = PROBLEMS[name]
    plan = getattr(plans, f"plan_{dtype}")(
        **problem, max_shared_bytes=max_shared_bytes, fixed_shared_bytes=60_000
    )
    size, item = samples(problem), 4 if dtype == "float32" else 8
    mixing, shared = bool(problem.get("mixing")), plan["slices_shared"]
    long_chunks = any(size > 32 for size in [*problem["chunk_sizes"], *problem.get("tile_chunk_sizes", [])])
    tiles = [size // (h * w) for h, w in problem.get("tile_sizes", [])]
    buckets = sum(
        chunk_size * plans.num_buckets(vector // chunk_size, chunk_size)
        for vector, copies, chunk_sizes in [
            (size, 1, problem["chunk_sizes"]),
            *((in_sample, 2, problem.get("tile_chunk_sizes", [])) for in_sample in tiles),
        ]
        for chunk_size in chunk_sizes
        if copies == 1 or not plans.is_tiny(vector // chunk_size, chunk_size)
        for _ in range(copies)
    )
    bytes_of = {
        "counters": 4 * buckets,
        "verdicts": 8 * plans.max_steps,
        "arrivals": 4,
        "crowds": 4 * buckets,
        "cursors": 4 * buckets,
        "columns": 4 * size,
        "ranks": 4 * size,
        "entries": 2 * item * size,
        "kept_entries": 2 * item * size * long_chunks,
        "digit_counts": 4 * 256 * plan["blocks_per_team"],
        "measured": 2 * sum(tiles) * item,
        "projected": 2 * max(tiles, default=0) * item,
        "means": sum(tiles) * item,
        "sample": size * item * mixing,
        "slice": size * item * (not shared),
        "spare_slice": size * item * (mixing and not shared),
    }
    assert list(bytes_of) == [name for name, *_ in plans.buffers()]
    offsets, ends = iter(plan["offsets"]), [0, 0, 0]
    for name, copies, contents, *_ in plans.buffers():
        for _ in range(copies):
            assert next(offsets) == ends[contents], name
            ends[contents] += -(-bytes_of[name] // 256) * 256
    assert next(offsets, None) is None
    assert plan["bytes"] == ends


def test_every_buffer_names_writer_reader_and_barrier(plans: ModuleType) -> None:
    for name, copies, _, writer, reader, barrier in plans.buffers():
        assert all((writer, reader, barrier)), name
        assert copies in (1, 2)
        for owner, function in re.findall(r"(\w+)::(\w+)", f"{writer} {reader}"):
            assert re.search(rf"(class|struct) {owner}\b", SOURCES), f"{name}: {owner}"
            assert re.search(rf"__device__ .*\b{function}\(", SOURCES), f"{name}: {function}"


def test_small_shared_memory_puts_slices_into_global_memory(plans: ModuleType) -> None:
    assert plans.plan_float32(**FLUX)["slices_shared"]
    little = plans.plan_float32(**FLUX, num_sms=2, max_shared_bytes=60_000, fixed_shared_bytes=40_000)
    assert not little["slices_shared"]
    assert little["shared_bytes"] == 40_000


def test_mixing_tiles_are_divided_only_for_many_more_blocks(plans: ModuleType) -> None:
    """Mixing tiles are whole planes: 16 blocks can hold them, or 132 multiprocessors 128 smaller slices."""
    problem: dict[str, Any] = {"shape": [16, 64, 64], "tile_sizes": [[4, 4]], "tile_chunk_sizes": [4]}
    few = plans.plan_float32(**problem, mixing=[[64, 64, 1]], num_sms=32)
    assert (few["blocks_per_team"], few["mixing_inside_blocks"]) == (16, [True])
    many = plans.plan_float32(**problem, mixing=[[64, 64, 1]], num_sms=132)
    assert (many["blocks_per_team"], many["mixing_inside_blocks"]) == (128, [False])


@pytest.mark.parametrize(("batch", "blocks", "teams"), [(1, 16, 1), (8, 16, 8), (12, 8, 12), (64, 4, 33)])
def test_clusters_share_out_the_multiprocessors(
    plans: ModuleType, batch: int, blocks: int, teams: int
) -> None:
    plan = plans.plan_float32(**PROBLEMS["flux, mixing"], batch=batch, max_cluster_blocks=16)
    assert plan["clusters"]
    assert (plan["blocks_per_team"], plan["num_teams"]) == (blocks, teams)


def test_clusters_have_a_power_of_two_of_blocks(plans: ModuleType) -> None:
    """The last blocks of a cluster have no values if eleven blocks hold the sample."""
    problem: dict[str, Any] = {"shape": [11, 8, 8], "tile_sizes": [[8, 8]], "tile_chunk_sizes": [1]}
    plan = plans.plan_float32(**problem, max_cluster_blocks=16)
    assert (plan["clusters"], plan["blocks_per_team"], plan["slice_size"]) == (True, 16, 64)
    assert plans.plan_float32(**problem)["blocks_per_team"] == 11


def test_samples_that_do_not_fit_into_a_cluster_have_larger_teams(plans: ModuleType) -> None:
    problem = PROBLEMS["wan, mixing"]
    assert plans.plan_float32(**problem, max_cluster_blocks=16) == plans.plan_float32(**problem)


def test_fast_division(plans: ModuleType) -> None:
    """Numerators up to 2^31 - 1; the critical ones lie beside multiples of the divisor."""
    largest = 2**31 - 1
    powers = [2**k + d for k in range(31) for d in (-1, 0, 1) if 0 < 2**k + d <= largest]
    for divisor in {*range(1, 300), *powers, 60, 104, 6240, 131_040, largest - 1, largest}:
        last = largest // divisor * divisor
        for n in (0, 1, divisor - 1, divisor, last - 1, last, largest - 1, largest):
            if n >= 0:
                assert plans.quotient(n, divisor) == n // divisor, (n, divisor)


def test_problems_beyond_the_capacity_are_refused(plans: ModuleType) -> None:
    shape = [1, 1, 512]
    with pytest.raises(ValueError, match=r"got 9 chunk sizes, 0 tile sizes and 0 mixing domains; .* up to 8"):
        plans.plan_float32(shape=shape, chunk_sizes=[1] * 9)
    with pytest.raises(ValueError, match="got 0 chunk sizes, 9 tile sizes"):
        plans.plan_float32(shape=shape, tile_sizes=[[1, 2]] * 9, tile_chunk_sizes=[1])
    with pytest.raises(ValueError, match="9 mixing domains"):
        plans.plan_float32(shape=shape, chunk_sizes=[1], mixing=[[1, 2, 1]] * 9)
    with pytest.raises(ValueError, match=f"up to {plans.max_tables} confidence tables"):
        plans.plan_float32(shape=shape, tile_sizes=[[1, 2]] * 8, tile_chunk_sizes=[1, 2, 4])
    with pytest.raises(ValueError, match=r"and 8589934592 tile statistics; .* up to 2147483647"):
        plans.plan_float32(shape=[1, 1, 2**30], tile_sizes=[[1, 2]] * 8, tile_chunk_sizes=[1])
