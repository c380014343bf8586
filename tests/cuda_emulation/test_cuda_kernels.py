"""CUDA kernels, emulated on the CPU: they return the bits of the reference, on devices of several sizes."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from bits import assert_same_bits
from cuda_emulation.arguments import arrays, half_length_fft, projection, turns, twiddles
from cuda_emulation.build import PLANTS, build, load
from inputs import DISTRIBUTIONS, TABLES, tables, values
from torch import Tensor

from bench.inputs import power_law
from noisetilt_kernels import python_ref
from noisetilt_kernels.backends.reference import tables_like
from noisetilt_kernels.python_ref import Normal

REAL = (torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow))

DEVICES = {
    "one block": {"num_sms": 1, "threads_per_block": 64},
    "few blocks": {"num_sms": 4, "threads_per_block": 128},
    "many blocks": {"num_sms": 40, "threads_per_block": 64},
}
PROJECTING = (*DEVICES, "clusters")
"""Devices for the projection kernel: the last one's teams are clusters."""


@pytest.fixture(autouse=True)
def teams_are_no_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOISETILT_CUDA_CLUSTERS", "0")


def set_device(kernels: ModuleType, name: str, seed: int) -> None:
    if name == "clusters":
        os.environ["NOISETILT_CUDA_CLUSTERS"] = "1"
        name = "many blocks"
    kernels.set_device(**DEVICES[name], seed=seed)


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    return load("kernels")


@pytest.fixture(scope="module")
def traced_kernels() -> ModuleType:
    """Module that finds races in shared memory and missing releases and acquires."""
    return load("kernels_traced")


# ---- two-level order statistics ----


def project_2os(kernels: ModuleType, x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    samples = x.view(len(x), 1, 1, -1).numpy()
    result = kernels.project(samples, tables=[arrays(lower, upper)], num_values=1, tiles=[])
    return torch.from_numpy(result).view(x.shape)


def check_2os(kernels: ModuleType, x: Tensor, lower: Tensor, upper: Tensor, context: str) -> None:
    expected = python_ref.project_2os(x, lower, upper)
    assert_same_bits(project_2os(kernels, x, lower, upper), expected, context)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("device", PROJECTING)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_2os(kernels: ModuleType, distribution: str, device: str, dtype: torch.dtype) -> None:
    for seed, (num_chunks, chunk_size) in enumerate(
        [(16, 4), (300, 4), (75, 16), (40, 5), (7, 1), (3, 50), (1, 64)]
    ):
        set_device(kernels, device, seed)
        for table in TABLES:
            x = values(distribution, (2, num_chunks * chunk_size), dtype, seed)
            context = f"{num_chunks}x{chunk_size} {table}"
            check_2os(kernels, x, *tables(table, num_chunks, chunk_size, dtype, seed), context)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("distribution", ["normal", "few values", "1/k", "one outlier", "everything"])
@pytest.mark.parametrize(
    ("num_chunks", "chunk_size"),
    [(4096, 4), (1024, 16), (3000, 3), (17, 300), (1, 5000), (257, 40), (2, 257)],
)
def test_2os_of_longer_samples(
    kernels: ModuleType, num_chunks: int, chunk_size: int, distribution: str, dtype: torch.dtype
) -> None:
    kernels.set_device(num_sms=6, threads_per_block=256, seed=num_chunks)
    x = values(distribution, (1, num_chunks * chunk_size), dtype)
    for scale in (1.0, 1e-3, 1e6):
        check_2os(kernels, x * scale, *tables("typical", num_chunks, chunk_size, dtype), f"times {scale}")


@pytest.mark.parametrize("chunk_size", [1, 4, 16])
def test_2os_of_values_at_entries_of_the_table(kernels: ModuleType, chunk_size: int) -> None:
    """Test values at an entry of the table and one step beside it: a shortcut by ranks would fail here."""
    for num_chunks in (9, 150, 1000):
        kernels.set_device(**DEVICES["few blocks"], seed=num_chunks)
        lower, upper = tables("typical", num_chunks, chunk_size)
        generator = torch.Generator().manual_seed(num_chunks)
        edge = torch.where(torch.rand(lower.shape, generator=generator) < 0.5, lower, upper).flatten()
        step = torch.randint(-1, 2, edge.shape, generator=generator) * torch.inf
        x = torch.where(step.isnan(), edge, torch.nextafter(edge, step))
        order = torch.randperm(num_chunks, generator=generator)
        for y in (
            x,
            x.view(num_chunks, chunk_size)[order].flatten(),
            x[torch.randperm(len(x), generator=generator)],
        ):
            check_2os(kernels, y[None].contiguous(), lower, upper, f"{num_chunks} chunks")


def test_rank_ranges_report_the_faults_of_a_table(kernels: ModuleType) -> None:
    kernels.set_device(**DEVICES["few blocks"])
    lower, upper = tables("typical", 300, 4)
    faults = {"nan": 0, "crossed": 1, "falling": 2}

    def found(lower: Tensor, upper: Tensor) -> set[str]:
        _, flags = kernels.rank_ranges(*arrays(lower, upper))
        return {name for name, k in faults.items() if flags[k]}

    assert found(lower, upper) == set()
    for place in ((0, 0), (299, 3), (150, 2)):
        broken = lower.clone()
        broken[place] = torch.nan
        assert "nan" in found(broken, upper)
        assert "nan" in found(
            broken.fill_(-100.0),
            upper.index_put([torch.tensor(k) for k in place], upper[0, 0] * 0 + torch.nan),
        )
        broken = lower.clone()
        broken[place] = 100.0
        assert "crossed" in found(broken, upper)
    assert found(lower.flip(0), torch.full_like(upper, 100.0)) == {"falling"}


def test_rank_ranges_are_complete_and_empty_for_unsorted_tables(kernels: ModuleType) -> None:
    """Every column and bucket has a range, which is empty if the table is not monotone."""
    kernels.set_device(**DEVICES["few blocks"])
    for name in ("typical", "monotone", "pinned"):
        lower, upper = tables(name, 500, 4)
        ranges, _ = kernels.rank_ranges(*arrays(lower, upper))
        assert ranges.shape == (4, kernels.num_buckets(500, 4), 2)
    ranges, _ = kernels.rank_ranges(*arrays(*tables("unsorted", 500, 4)))
    assert (ranges[..., 0] > ranges[..., 1]).all()


# ---- tile statistics and project ----

SAMPLES = {  # shape: chunk sizes of values, of statistics, tiles
    (2, 8, 8): ((4, 16), (4, 16), ((2, 2), (4, 4))),
    (4, 16, 16): ((4, 16), (4, 16), ((4, 4), (8, 8), (16, 16))),
    (3, 12, 8): ((4,), (2, 3), ((3, 4), (1, 2), (12, 8))),
    (1, 1, 256): ((4, 16), (4, 16), ((1, 16), (1, 64))),
    (5, 4, 6): ((3, 40), (5, 7), ((2, 3), (4, 2))),
    (2, 7, 5): ((7,), (2,), ((7, 5), (1, 5), (7, 1))),
    (1, 48, 20): ((1, 2), (4,), ((48, 20), (24, 10))),
    # tiles that do not divide the plane
    (8, 10, 11): ((4, 16), (4, 16), ((4, 4), (5, 11), (8, 8))),
    (4, 9, 13): ((4,), (5, 2), ((2, 3), (9, 6))),
}


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("device", PROJECTING)
@pytest.mark.parametrize("shape", SAMPLES)
def test_project(kernels: ModuleType, shape: tuple[int, ...], device: str, dtype: torch.dtype) -> None:
    value_chunk_sizes, chunk_sizes, tile_sizes = SAMPLES[shape]
    for seed, distribution in enumerate(DISTRIBUTIONS):
        set_device(kernels, device, seed)
        x = values(distribution, (3, *shape), dtype)
        table_for = tables_like(x, 1e-3)
        for tile in tile_sizes:
            result = kernels.project(x.numpy(), **projection(shape, dtype, (), chunk_sizes, (tile,)))
            expected = python_ref.project_tile_stats(x, tile, chunk_sizes, table_for)
            assert_same_bits(torch.from_numpy(result), expected, f"{distribution}, {tile}")
        # chunks of one value
        expected = python_ref.project_2os(x.flatten(1), *table_for(x[0].numel(), 1, Normal()))
        result = kernels.project(x.numpy(), **projection(shape, dtype, (1,), (), ()))
        assert_same_bits(torch.from_numpy(result).flatten(1), expected, distribution)

        result = kernels.project(
            x.numpy(), **projection(shape, dtype, value_chunk_sizes, chunk_sizes, tile_sizes)
        )
        assert_same_bits(torch.from_numpy(result), project(x, shape), distribution)


def project(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return python_ref.project with chunk sizes of values that differ from those of statistics."""
    value_chunk_sizes, chunk_sizes, tile_sizes = SAMPLES[shape]
    table_for = tables_like(x, 1e-3)
    x = python_ref.project(x, value_chunk_sizes, (), table_for)
    for tile in tile_sizes:
        x = python_ref.project_tile_stats(x, tile, chunk_sizes, table_for)
    return x


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("distribution", ["normal", "1/k", "few values"])
def test_tile_statistics_of_many_tiles(kernels: ModuleType, distribution: str, dtype: torch.dtype) -> None:
    """Statistics of more tiles than every block ranks alone."""
    kernels.set_device(num_sms=5, threads_per_block=256, seed=1)
    check_many_tiles(kernels, distribution, dtype)


def check_many_tiles(kernels: ModuleType, distribution: str, dtype: torch.dtype = torch.float32) -> None:
    shape, tile = (6, 64, 64), (2, 2)
    x = values(distribution, (1, *shape), dtype)
    result = kernels.project(x.numpy(), **projection(shape, dtype, (), (4, 16), (tile,)))
    expected = python_ref.project_tile_stats(x, tile, (4, 16), tables_like(x, 1e-3))
    assert_same_bits(torch.from_numpy(result), expected)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("chunk_sizes", [(4, 300), (1, 300), (300, 4)])
def test_tile_statistics_in_long_chunks(
    kernels: ModuleType, chunk_sizes: tuple[int, ...], scale: float, dtype: torch.dtype
) -> None:
    shape, tile = (2, 48, 50), (2, 2)
    x = values("normal", (3, *shape), dtype) * scale
    expected = python_ref.project_tile_stats(x, tile, chunk_sizes, tables_like(x, 1e-3))
    arguments = projection(shape, dtype, (), chunk_sizes, (tile,))
    for seed in range(12):
        kernels.set_device(num_sms=(5, 16, 40)[seed % 3], threads_per_block=64, seed=seed)
        result = kernels.project(x.numpy(), **arguments)
        assert_same_bits(torch.from_numpy(result), expected, f"seed {seed}")


def test_a_tile_at_the_limit_of_constant(kernels: ModuleType) -> None:
    """Energy 2^-35 and mean 1 are exactly at the border, which counts as constant."""
    kernels.set_device(**DEVICES["one block"])
    step = 2.0**-18
    x = torch.tensor([1 - step, 1 + step, 1 + step, 1 - step] * 8).view(1, 1, 4, 8)
    result = kernels.project(x.numpy(), **projection((1, 4, 8), torch.float32, (), (4,), ((1, 2),)))
    expected = python_ref.project_tile_stats(x, (1, 2), (4,), tables_like(x, 1e-3))
    assert_same_bits(torch.from_numpy(result), expected)


# ---- mixing ----

MIXING = {
    (2, 8, 8): (((8, 8), 6), ((4, 4), 4)),
    (4, 16, 16): (((16, 16), 8), ((8, 8), 3), ((4, 16), 2)),
    (3, 12, 8): (((12, 8), 7), ((6, 2), 2)),
    (1, 1, 256): (((1, 256), 8), ((1, 64), 6)),
    (5, 4, 6): (((4, 6), 3),),
    (1, 48, 20): (((48, 20), 10), ((6, 4), 3)),
    (8, 10, 11): (((10, 11), 5), ((4, 8), 3)),
    (4, 9, 13): (((9, 12), 5), ((4, 4), 4)),
}


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("device", PROJECTING)
@pytest.mark.parametrize("shape", MIXING)
def test_project_mixing_domains(
    kernels: ModuleType, shape: tuple[int, ...], device: str, dtype: torch.dtype
) -> None:
    for seed, distribution in enumerate(("normal", "1/k", "few values", "nans")):
        set_device(kernels, device, seed)
        check_project_mixing_domains(kernels, shape, distribution, dtype)


def check_project_mixing_domains(
    kernels: ModuleType, shape: tuple[int, ...], distribution: str, dtype: torch.dtype = torch.float32
) -> None:
    x = values(distribution, (3, *shape), dtype)
    check_mixing(kernels.project_mixing_domains, x, x, MIXING[shape], distribution)


def check_mixing(
    kernel: Callable[..., Any],
    x: Tensor,
    before: Tensor,
    mixing: Sequence[tuple[tuple[int, int], int]],
    context: str = "",
) -> None:
    """Compare what a kernel makes of x with the projections of mixing domains of `before`."""
    shape = tuple(x.shape[1:])
    expected = before
    for tile, repeats in mixing:
        for _ in range(repeats):
            expected = project(python_ref.butterfly(expected, tile, 1), shape)
        expected = python_ref.butterfly_inverse(expected, tile, repeats)
    numbers = [n for tile, repeats in mixing for n in (*tile, repeats)]
    result = kernel(x.numpy(), **projection(shape, x.dtype, *SAMPLES[shape]), mixing=numbers)
    assert_same_bits(torch.from_numpy(result), expected, context)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("device", PROJECTING)
@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 12, 8), (8, 10, 11)])
def test_the_stages_of_whiten_share_memory(
    kernels: ModuleType, shape: tuple[int, ...], device: str, dtype: torch.dtype
) -> None:
    for seed, distribution in enumerate(("1/k", "few values")):
        set_device(kernels, device, seed)
        x = values(distribution, (3, *shape), dtype)
        x[1, 0, 0, 0] = torch.nan
        finite = x.clone()
        finite[1] = torch.nan
        before = project(project(finite, shape), shape)
        check_mixing(kernels.stages_of_whiten, x, before, MIXING[shape], distribution)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("num_sms", [5, 24])
def test_project_mixing_domains_with_more_tiles_than_a_block_ranks_alone(
    kernels: ModuleType, num_sms: int, dtype: torch.dtype
) -> None:
    """Statistics of as many tiles as in a video are counted like values, in separate rounds if needed."""
    shape, tile_sizes = (6, 64, 64), ((2, 2), (4, 4))
    kernels.set_device(num_sms=num_sms, threads_per_block=128, seed=num_sms)
    x = torch.cat([power_law(1.0, shape).to(dtype)[None], values("normal", (2, *shape), dtype)])
    table_for, expected = tables_like(x, 1e-3), x
    for tile, repeats in (((64, 64), 2), ((8, 8), 1)):
        for _ in range(repeats):
            expected = python_ref.project(
                python_ref.butterfly(expected, tile, 1), (4, 16), tile_sizes, table_for
            )
        expected = python_ref.butterfly_inverse(expected, tile, repeats)
    arguments = projection(shape, dtype, (4, 16), (4, 16), tile_sizes)
    result = torch.from_numpy(
        kernels.project_mixing_domains(x.numpy(), **arguments, mixing=[64, 64, 2, 8, 8, 1])
    )
    assert_same_bits(result, expected)


@pytest.mark.parametrize("dtype", REAL)
def test_slices_that_do_not_fit_into_shared_memory(kernels: ModuleType, dtype: torch.dtype) -> None:
    shape = (4, 64, 64)
    bytes_beside_slices = 40_000 if dtype == torch.float32 else 74_000
    kernels.set_device(num_sms=2, threads_per_block=128, shared_bytes_per_block=bytes_beside_slices, seed=1)
    x = power_law(1.0, shape).to(dtype)[None]
    table_for = tables_like(x, 1e-3)
    arguments = projection(shape, dtype, (4, 16), (4, 16), ((4, 4), (8, 8)))
    expected = python_ref.project(x, (4, 16), ((4, 4), (8, 8)), table_for)
    assert_same_bits(torch.from_numpy(kernels.project(x.numpy(), **arguments)), expected)
    expected = python_ref.butterfly(x, (64, 64), 1)
    expected = python_ref.butterfly_inverse(
        python_ref.project(expected, (4, 16), ((4, 4), (8, 8)), table_for), (64, 64), 1
    )
    assert_same_bits(
        torch.from_numpy(kernels.project_mixing_domains(x.numpy(), **arguments, mixing=[64, 64, 1])), expected
    )


@pytest.mark.slow
def test_one_latent_of_full_size(kernels: ModuleType) -> None:
    """Two mixing steps of the FLUX preset, divided into slices as on a large GPU and as for a batch."""
    shape, tile_sizes = (16, 64, 64), ((4, 4), (8, 8), (16, 16))
    x = power_law(1.0, shape).float()[None]
    arguments = projection(shape, torch.float32, (4, 16), (4, 16), tile_sizes)
    table_for = tables_like(x, 1e-3)
    expected = x
    for _ in range(2):
        expected = python_ref.project(
            python_ref.butterfly(expected, (64, 64), 1), (4, 16), tile_sizes, table_for
        )
    expected = python_ref.butterfly_inverse(expected, (64, 64), 2)
    for num_sms, clusters in ((132, "0"), (16, "0"), (132, "1")):
        kernels.set_device(num_sms=num_sms, threads_per_block=128, seed=num_sms)
        os.environ["NOISETILT_CUDA_CLUSTERS"] = clusters
        result = torch.from_numpy(kernels.project_mixing_domains(x.numpy(), **arguments, mixing=[64, 64, 2]))
        assert_same_bits(result, expected, f"{num_sms} multiprocessors, clusters: {clusters}")


@pytest.mark.parametrize("dtype", REAL)
def test_a_sample_that_is_not_finite_is_nan_throughout(kernels: ModuleType, dtype: torch.dtype) -> None:
    kernels.set_device(**DEVICES["few blocks"])
    x = values("normal", (4, 1, 1, 10_000), dtype)
    x[1, 0, 0, 9_999], x[3, 0, 0, 4_096] = torch.inf, torch.nan
    expected = x.clone()
    expected[[1, 3]] = torch.nan
    assert_same_bits(torch.from_numpy(kernels.finite_or_nan(x.numpy())), expected)


# ---- transforms ----

PLANES = [  # (C, H, W), tile, steps
    ((2, 8, 8), (8, 8), 6),
    ((3, 16, 16), (8, 8), 6),
    ((3, 16, 16), (4, 4), 3),
    ((2, 64, 64), (64, 64), 12),
    ((1, 128, 128), (128, 128), 14),
    ((2, 60, 104), (60, 104), 13),
    ((2, 60, 104), (4, 8), 5),
    ((5, 6, 10), (3, 2), 4),
    ((3, 4, 6), (4, 6), 5),
    ((2, 1, 2), (1, 2), 1),
    ((1, 1, 96), (1, 48), 7),
    ((2, 6, 9), (2, 3), 1),
    ((2, 16, 12), (8, 6), 4),
    ((2, 16, 12), (8, 2), 4),
    ((2, 22, 30), (8, 8), 6),  # from here on the tiles do not divide the plane
    ((2, 9, 13), (9, 12), 5),
    ((2, 5, 40), (5, 16), 5),
]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("shape", "tile", "most_steps"), PLANES)
def test_butterfly(
    kernels: ModuleType,
    shape: tuple[int, ...],
    tile: tuple[int, int],
    most_steps: int,
    inverse: bool,
    dtype: torch.dtype,
) -> None:
    reference = python_ref.butterfly_inverse if inverse else python_ref.butterfly
    x = values("normal", (2, *shape), dtype)
    for steps in sorted({0, 1, 2, 3, 5, most_steps}):
        kernels.set_device(num_sms=3, threads_per_block=256, seed=steps)
        result = torch.from_numpy(kernels.butterfly(x.numpy(), tile=list(tile), steps=steps, inverse=inverse))
        assert_same_bits(result, reference(x, tile, steps), f"{steps} steps")


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("exponent", range(16))
def test_hadamard_transform(kernels: ModuleType, exponent: int, dtype: torch.dtype) -> None:
    kernels.set_device(num_sms=3, threads_per_block=1024 if exponent % 2 else 512, seed=exponent)
    x = values("normal", (3, 2**exponent), dtype)
    result = torch.from_numpy(kernels.hadamard_transform(x.numpy(), scale=0.3))
    assert_same_bits(result, python_ref.hadamard_transform(x, 0.3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("distribution", ["normal", "everything"])
@pytest.mark.parametrize("exponent", [0, 1, 3, 4, 5, 9, 12, 15])
def test_hadamard_transform_of_16_bits(
    kernels: ModuleType, exponent: int, distribution: str, dtype: torch.dtype
) -> None:
    kernels.set_device(num_sms=3, threads_per_block=1024 if exponent % 2 else 512, seed=exponent)
    x = values(distribution, (3, 2**exponent)).to(dtype)
    transform = getattr(kernels, f"hadamard_transform_{str(dtype).removeprefix('torch.')}")
    result = torch.from_numpy(transform(x.view(torch.uint16).numpy(), scale=0.3)).view(dtype)
    assert_same_bits(result, python_ref.hadamard_transform(x.float(), 0.3).to(dtype))


# ---- compact Fourier transform ----


FFT_DEVICES = [
    *DEVICES.values(),
    {"num_sms": 4, "threads_per_block": 1024, "shared_bytes_per_block": 20 << 10},
]


def check_fourier(kernels: ModuleType, x: Tensor) -> None:
    """Compact Fourier transform and its inverse, for N a power of two."""
    for inverse in (False, True):
        expected = (python_ref.compact_fourier_inverse if inverse else python_ref.compact_fourier)(x)
        for in_place in (False, True):
            result = kernels.compact_fourier(x.numpy(), twiddles(x), inverse=inverse, in_place=in_place)
            context = f"{'inverse' * inverse} {'in place' * in_place}"
            assert_same_bits(torch.from_numpy(result), expected, context)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(
    "exponent", [*range(1, 17), *(pytest.param(k, marks=pytest.mark.slow) for k in (18, 20))]
)
def test_compact_fourier(kernels: ModuleType, exponent: int, dtype: torch.dtype) -> None:
    for k, device in enumerate(FFT_DEVICES if exponent < 14 else FFT_DEVICES[-1:]):
        kernels.set_device(**device, seed=k)
        check_fourier(kernels, values("normal", (5 if exponent < 10 else 2, 2**exponent), dtype))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("size", [64, 2048, 8192])
@pytest.mark.parametrize(
    "distribution", ["everything", "infinities", "nans", "signed zeros", "largest", "denormal"]
)
def test_compact_fourier_of_unusual_values(
    kernels: ModuleType, distribution: str, size: int, dtype: torch.dtype
) -> None:
    """Samples with one infinity or NaN, and with many."""
    kernels.set_device(**FFT_DEVICES[-1])
    x = values(distribution, (3, size), dtype)
    x[0] = x[0].where(x[0].isfinite(), 1.0)
    x[0, size // 3] = x[1, size // 5]
    check_fourier(kernels, x)


ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-14}


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("size", [6, 64, 100, 1000])
def test_compact_fourier_by_other_ffts(kernels: ModuleType, size: int, dtype: torch.dtype) -> None:
    kernels.set_device(**DEVICES["few blocks"])
    x = values("normal", (3, size), dtype)
    z = torch.from_numpy(kernels.compact_fourier_pack(half_length_fft(x).numpy(), turns(x)))
    expected = python_ref.compact_fourier(x)
    assert float((z - expected).norm()) <= ROUNDING[dtype] * float(expected.norm())
    spectrum = torch.from_numpy(kernels.compact_fourier_unpack(z.numpy(), turns(x)))
    back = half_length_fft(spectrum, inverse=True)
    assert float((back - x).norm()) <= ROUNDING[dtype] * float(x.norm())


# ---- WGNC ----


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("block_size", [16, 2, 3, 17, 100])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_wgnc_blocks(kernels: ModuleType, distribution: str, block_size: int, dtype: torch.dtype) -> None:
    for num_blocks in (1, 3, 130):
        kernels.set_device(**DEVICES["few blocks"], seed=num_blocks)
        x = values(distribution, (1, 2 * block_size * num_blocks), dtype)
        result = torch.from_numpy(kernels.project_wgnc_blocks(x.numpy(), block_size=block_size))
        expected = python_ref.project_wgnc_blocks(torch.view_as_complex(x.view(1, -1, 2)), block_size)
        assert_same_bits(result, torch.view_as_real(expected).flatten(1), f"{num_blocks} blocks")


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("block_size", [16, 2, 64])
@pytest.mark.parametrize("exponent", [*range(2, 17), pytest.param(18, marks=pytest.mark.slow)])
def test_wgnc(kernels: ModuleType, exponent: int, block_size: int, dtype: torch.dtype) -> None:
    if 2**exponent < 2 * block_size:
        return
    for k, device in enumerate(FFT_DEVICES[::2] if exponent < 14 else FFT_DEVICES[-1:]):
        kernels.set_device(**device, seed=k)
        x = values("1/k", (5 if exponent < 10 else 2, 2**exponent), dtype)
        expected = python_ref.project_wgnc(x, block_size)
        for in_place in (False, True):
            result = kernels.project_wgnc(x.numpy(), twiddles(x), block_size=block_size, in_place=in_place)
            assert_same_bits(torch.from_numpy(result), expected)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("block_size", [16, 2, 17])
@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4, 7, 64, 129, 301])
def test_wgnc_between_ffts(kernels: ModuleType, num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
    for device in DEVICES:
        kernels.set_device(**DEVICES[device], seed=num_blocks)
        for distribution in ("normal", "1/k"):
            x = values(distribution, (2, 2 * block_size * num_blocks), dtype)
            spectrum = kernels.wgnc_between_ffts(half_length_fft(x).numpy(), turns(x), block_size=block_size)
            result = half_length_fft(torch.from_numpy(spectrum), inverse=True)
            expected = python_ref.project_wgnc(x, block_size)
            assert float((result - expected).norm()) <= 10 * ROUNDING[dtype] * float(expected.norm()), (
                distribution
            )


# ---- races in shared memory, and the memory model of global memory ----


@pytest.mark.parametrize("device", ["few blocks", "many blocks", "clusters"])
@pytest.mark.parametrize("shape", [(2, 8, 8), (5, 4, 6), pytest.param((4, 16, 16), marks=pytest.mark.slow)])
def test_traced_project_mixing_domains(
    traced_kernels: ModuleType, shape: tuple[int, ...], device: str
) -> None:
    """Every block sees global memory as late as the memory model allows."""
    for seed, distribution in enumerate(("normal", "1/k", "few values", "nans")):
        set_device(traced_kernels, device, seed)
        check_project_mixing_domains(traced_kernels, shape, distribution)


@pytest.mark.parametrize("distribution", ["normal", "1/k", "few values"])
def test_traced_2os(traced_kernels: ModuleType, distribution: str) -> None:
    """Order statistics by counting, among neighbours and by sorting."""
    for seed, (num_chunks, chunk_size) in enumerate([(300, 4), (75, 16), (3, 50), (17, 300)]):
        traced_kernels.set_device(**DEVICES["few blocks"], seed=seed)
        x = values(distribution, (2, num_chunks * chunk_size), torch.float32, seed)
        lower, upper = tables("typical", num_chunks, chunk_size)
        check_2os(traced_kernels, x, lower, upper, f"{num_chunks}x{chunk_size}")


@pytest.mark.parametrize("distribution", ["normal", "1/k"])
def test_traced_columns_of_one_warp_between_those_of_two(
    traced_kernels: ModuleType, distribution: str
) -> None:
    """A block sums up three tables, with 2, 1 and 2 warps for a column. Those that share a column
    exchange their sums.
    """
    x = values(distribution, (6, 1, 1, 256))
    expected = python_ref.project(x, (4, 16, 8), (), tables_like(x, 1e-3))
    arguments = projection((1, 1, 256), x.dtype, (4, 16, 8), (), ())
    for seed in range(10):
        traced_kernels.set_device(num_sms=2, threads_per_block=512, seed=seed)
        result = traced_kernels.project(x.numpy(), **arguments)
        assert_same_bits(torch.from_numpy(result), expected, f"seed {seed}")


@pytest.mark.parametrize("distribution", ["normal", "1/k"])
def test_traced_tile_statistics(traced_kernels: ModuleType, distribution: str) -> None:
    for seed in range(2):
        traced_kernels.set_device(num_sms=5, threads_per_block=256, seed=seed)
        check_many_tiles(traced_kernels, distribution)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("device", DEVICES)
def test_traced_projection_of_every_shape(traced_kernels: ModuleType, device: str, seed: int) -> None:
    for k, shape in enumerate(MIXING):
        distribution = list(DISTRIBUTIONS)[(4 * k + seed) % len(DISTRIBUTIONS)]
        traced_kernels.set_device(**DEVICES[device], seed=seed)
        check_project_mixing_domains(
            traced_kernels, shape, distribution, (torch.float32, torch.float64)[seed % 2]
        )


def transformed(kernels: ModuleType, distribution: str) -> list[Tensor]:
    """Results of all kernels but the projection."""
    samples, rows = values(distribution, (2, 2, 64, 64)), values(distribution, (2, 16384))
    spectra = values(distribution, (1, 32 * 5 * 9))
    factors, spectra = turns(spectra), spectra.numpy()
    results = [
        kernels.butterfly(samples.numpy(), tile=[64, 64], steps=7),
        kernels.butterfly(samples.numpy(), tile=[8, 8], steps=6, inverse=True),
        kernels.hadamard_transform(samples.flatten(1).numpy()),
        *(
            kernels.compact_fourier(x.numpy(), twiddles(x), inverse=inverse)
            for x in (rows, rows[:, :512].contiguous())
            for inverse in (False, True)
        ),
        *(
            kernels.project_wgnc(x.numpy(), twiddles(x), block_size=16)
            for x in (rows, rows[:, :512].contiguous())
        ),
        kernels.compact_fourier_pack(spectra, factors),
        kernels.compact_fourier_unpack(spectra, factors),
        kernels.finite_or_nan(samples.numpy()),
        kernels.rank_ranges(*arrays(*tables("typical", 300, 4)))[0],
    ]
    for block_size in (16, 5):
        results.append(kernels.project_wgnc_blocks(spectra, block_size=block_size))
        results.append(kernels.wgnc_between_ffts(spectra, factors, block_size=block_size))
    return [torch.from_numpy(result) for result in results]


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["normal", "1/k", "few values", "nans"])
def test_traced_transforms(kernels: ModuleType, traced_kernels: ModuleType, distribution: str) -> None:
    """The other kernels give the same bits when they are traced."""
    kernels.set_device(**DEVICES["few blocks"])
    expected = transformed(kernels, distribution)
    for seed in range(2):
        traced_kernels.set_device(**DEVICES["few blocks"], seed=seed)
        for k, result in enumerate(transformed(traced_kernels, distribution)):
            assert_same_bits(result, expected[k], f"result {k}")


def mix_in_teams(name: str) -> None:
    kernels = load(name)
    kernels.set_device(**DEVICES["many blocks"])
    check_project_mixing_domains(kernels, (2, 8, 8), "1/k")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["traced", *PLANTS])
def test_faults_of_team_sync_change_results(name: str) -> None:
    """The projection fails with a fault in the team barrier, and passes without one.

    A kernel with a fault may access any address, or never end: it runs in a process of its own.
    """
    build(f"kernels_{name}.so")
    process = multiprocessing.get_context("spawn").Process(target=mix_in_teams, args=(f"kernels_{name}",))
    process.start()
    process.join(timeout=60)
    process.kill()
    process.join()
    assert (process.exitcode == 0) == (name == "traced")
