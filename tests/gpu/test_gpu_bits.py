"""Bits of the operators on the GPU, compared with the reference on the CPU."""

import math

import pytest
import torch
from bits import assert_same_bits
from device import BACKEND, DEVICE, REAL, SMALL, assert_agrees, check, ops, samples
from inputs import DISTRIBUTIONS, TABLES, tables, values
from tolerances import FFT, ORTHOGONAL, relative_error
from torch import Tensor

import noisetilt_kernels as nt
from noisetilt_kernels import python_ref
from noisetilt_kernels.backends import FORCED
from noisetilt_kernels.backends.reference import tables_like

NAMES = tuple(DISTRIBUTIONS)
COMPLEX = (torch.complex64, torch.complex128)


def test_the_backend_under_test_is_in_use() -> None:
    assert BACKEND in ((FORCED.NAME,) if FORCED else ("cuda", "triton")), nt.backends()["cuda"]


# ---- two-level order statistics ----


def check_2os(x: Tensor, lower: Tensor, upper: Tensor, names: tuple[str, ...], context: str) -> None:
    there = lower.to(DEVICE), upper.to(DEVICE)
    check(
        lambda x: ops.project_2os(x, *there),
        lambda x: python_ref.project_2os(x, lower, upper),
        x,
        names,
        context,
        compare=assert_same_bits,
    )


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    ("num_chunks", "chunk_size"),
    [(1, 1), (7, 1), (16, 4), (300, 4), (75, 16), (40, 5), (1031, 2), (3, 50), (1, 64), (33, 32), (9, 33)],
)
def test_2os(num_chunks: int, chunk_size: int, table: str, dtype: torch.dtype) -> None:
    x = samples(NAMES, (num_chunks * chunk_size,), dtype, seed=num_chunks)
    check_2os(x, *tables(table, num_chunks, chunk_size, dtype, num_chunks), NAMES, "")


LONG = [
    (4096, 4),
    (1024, 16),
    (16_384, 4),
    (4096, 16),
    (131_072, 1),
    (30_000, 3),
    (3000, 64),
    (17, 300),
    (1, 70_000),
]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("table", ["typical", "unsorted"])
@pytest.mark.parametrize(("num_chunks", "chunk_size"), LONG)
def test_2os_of_long_samples(num_chunks: int, chunk_size: int, table: str, dtype: torch.dtype) -> None:
    pair = tables(table, num_chunks, chunk_size, dtype)
    names = ("normal", "few values", "1/k", "one outlier", "everything", "shifted", "sorted")
    x = samples(names, (num_chunks * chunk_size,), dtype)
    check_2os(x, *pair, names, "")
    check_2os(
        torch.cat([x[:1] * scale for scale in (1e-3, 1e3, 1e9)]),
        *pair,
        ("1e-3", "1e3", "1e9"),
        "scaled noise",
    )


def test_2os_of_a_video() -> None:
    names = ("normal", "1/k", "few values")
    for num_chunks, chunk_size in ((524_160, 4), (131_040, 16)):
        pair = (t.float() for t in nt.confidence_table(num_chunks, chunk_size))
        check_2os(samples(names, (num_chunks * chunk_size,)), *pair, names, f"chunks of {chunk_size}")


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("chunk_size", [1, 4, 16])
def test_2os_of_values_at_entries_of_the_table(chunk_size: int, dtype: torch.dtype) -> None:
    """Test values at an entry of the table and one step beside it: a shortcut by ranks would fail here."""
    for num_chunks in (9, 150, 1000, 20_000):
        lower, upper = tables("typical", num_chunks, chunk_size, dtype)
        generator = torch.Generator().manual_seed(num_chunks)
        edge = torch.where(torch.rand(lower.shape, generator=generator) < 0.5, lower, upper).flatten()
        step = torch.randint(-1, 2, edge.shape, generator=generator) * torch.inf
        x = torch.where(step.isnan(), edge, torch.nextafter(edge, step.to(dtype)))
        chunks = x.view(num_chunks, chunk_size)[torch.randperm(num_chunks, generator=generator)].flatten()
        shuffled = x[torch.randperm(len(x), generator=generator)]
        names = ("in order", "chunks shuffled", "shuffled")
        check_2os(torch.stack([x, chunks, shuffled]), lower, upper, names, f"{num_chunks} chunks")


@pytest.mark.parametrize("batch", range(1, 10))
def test_2os_of_every_small_batch(batch: int) -> None:
    x = samples(NAMES[:batch], (16 * 1024,))
    check_2os(x, *tables("typical", 4096, 4), NAMES[:batch], f"batch {batch}")


def test_2os_table_layouts_and_changes() -> None:
    x = values("1/k", (2, 1200))
    for num_chunks, chunk_size in ((300, 4), (75, 16), (1, 1200), (1200, 1)):
        lower, upper = tables("typical", num_chunks, chunk_size)
        expected = python_ref.project_2os(x, lower, upper)
        by_rows, by_columns = (
            (lower.to(DEVICE), upper.to(DEVICE)),
            (lower.t().to(DEVICE).t(), upper.t().to(DEVICE).t()),
        )
        padded = torch.nn.functional.pad(upper.to(DEVICE), (1, 2, 3, 1), value=torch.nan)[3:-1, 1:-2]
        for table in (by_rows, by_columns, (by_rows[0], by_columns[1]), (by_rows[0], padded)):
            assert_same_bits(
                ops.project_2os(x.to(DEVICE), *table).cpu(), expected, f"{num_chunks}x{chunk_size}"
            )
    lower, upper = (t.to(DEVICE) for t in tables("typical", 300, 4))
    for name in ("typical", "unsorted", "pinned", "monotone"):
        changed = tables(name, 300, 4)
        lower.copy_(changed[0])
        upper.copy_(changed[1])
        assert_same_bits(
            ops.project_2os(x.to(DEVICE), lower, upper).cpu(),
            python_ref.project_2os(x, *changed),
            f"changed to {name}",
        )


@pytest.mark.parametrize("place", [(0, 0), (299, 3), (150, 2)])
def test_bad_tables_are_errors(place: tuple[int, int]) -> None:
    x = values("normal", (1, 1200)).to(DEVICE)
    for value, message in ((torch.nan, "NaN"), (100.0, "exceed")):
        lower, upper = (t.to(DEVICE) for t in tables("typical", 300, 4))
        lower[place] = value
        with pytest.raises(ValueError, match=message):
            ops.project_2os(x, lower, upper)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Half-precision samples are computed in float32 and rounded once."""
    x = samples(("normal", "few values", "everything"), (65_536,)).to(dtype)
    lower, upper = tables("typical", 16_384, 4)
    actual = ops.project_2os(x.to(DEVICE), lower.to(DEVICE), upper.to(DEVICE))
    assert_same_bits(actual.cpu(), python_ref.project_2os(x.float(), lower, upper).to(dtype), "project_2os")
    x = x[:2]
    actual = ops.butterfly(x.view(2, 16, 64, 64).to(DEVICE), [8, 8], 6)
    assert_same_bits(
        actual.cpu(), python_ref.butterfly(x.float().view(2, 16, 64, 64), (8, 8), 6).to(dtype), "butterfly"
    )
    actual = ops.hadamard_transform(x.to(DEVICE), 2.0**-8)
    assert_same_bits(
        actual.cpu(), python_ref.hadamard_transform(x.float(), 2.0**-8).to(dtype), "hadamard_transform"
    )


# ---- tile statistics ----


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", SMALL)
def test_tile_stats(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    config, x = SMALL[shape], samples(NAMES, shape, dtype)
    for tile in config.tile_sizes:
        check(
            lambda x, tile=tile: ops.project_tile_stats(x, tile, config.chunk_sizes),
            lambda x, tile=tile: python_ref.project_tile_stats(
                x, tile, config.chunk_sizes, tables_like(x, 1e-3)
            ),
            x,
            NAMES,
            f"{tile}",
        )


# ---- butterfly, Walsh-Hadamard ----

PLANES = [  # (C, H, W), tile, most steps
    ((2, 8, 8), (8, 8), 6),
    ((3, 16, 16), (8, 8), 6),
    ((3, 16, 16), (4, 4), 3),
    ((16, 64, 64), (64, 64), 12),
    ((1, 128, 128), (128, 128), 14),
    ((2, 256, 256), (256, 256), 16),
    ((2, 60, 104), (60, 104), 13),
    ((2, 60, 104), (4, 8), 5),
    ((2, 96, 170), (96, 170), 14),
    ((5, 6, 10), (3, 2), 4),
    ((3, 4, 6), (4, 6), 5),
    ((2, 1, 2), (1, 2), 1),
    ((1, 1, 65_536), (1, 65_536), 16),
    ((1, 1, 96), (1, 48), 7),
    ((2, 6, 9), (2, 3), 1),
    ((1, 14, 9), (14, 3), 4),
]
LINEAR_NAMES = ("normal", "everything", "denormal", "huge", "signed zeros")


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("shape", "tile", "most_steps"), PLANES)
def test_butterfly(
    shape: tuple[int, ...], tile: tuple[int, int], most_steps: int, inverse: bool, dtype: torch.dtype
) -> None:
    reference = python_ref.butterfly_inverse if inverse else python_ref.butterfly
    x = samples(LINEAR_NAMES, shape, dtype)
    for steps in sorted({0, 1, 2, 3, 4, 5, most_steps}):
        check(
            lambda x, steps=steps: ops.butterfly(x, tile, steps, inverse),
            lambda x, steps=steps: reference(x, tile, steps),
            x,
            LINEAR_NAMES,
            f"{steps} steps",
        )


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("size", [*(2**k for k in range(17)), 3, 11, 100, 129, 5000])
def test_hadamard_transform(size: int, dtype: torch.dtype) -> None:
    x = samples(LINEAR_NAMES, (3, size), dtype)
    for scale in (1.0, size**-0.5, 0.3):
        check(
            lambda x, scale=scale: ops.hadamard_transform(x, scale),
            lambda x, scale=scale: python_ref.hadamard_transform(x, scale),
            x,
            LINEAR_NAMES,
            f"times {scale}",
        )


# ---- WGNC ----


def check_blocks(y: Tensor, block_size: int, names: tuple[str, ...], context: str) -> None:
    check(
        lambda y: ops.project_wgnc_blocks(y, block_size),
        lambda y: python_ref.project_wgnc_blocks(y, block_size),
        y,
        names,
        context,
    )


@pytest.mark.parametrize("dtype", COMPLEX)
@pytest.mark.parametrize("block_size", [16, 2, 3, 5, 8, 15, 17, 32, 64, 300])
def test_wgnc_blocks(block_size: int, dtype: torch.dtype) -> None:
    for num_blocks in (1, 3, 4, 130, 2048 if block_size == 16 else 21):
        y = torch.view_as_complex(
            samples(NAMES, (num_blocks * block_size, 2), dtype.to_real(), seed=num_blocks)
        )
        check_blocks(y, block_size, NAMES, f"{num_blocks} blocks")


@pytest.mark.parametrize("dtype", COMPLEX)
@pytest.mark.parametrize("scale", [1.0, 2.0**-60, 2.0**60])
def test_wgnc_blocks_with_ties(scale: float, dtype: torch.dtype) -> None:
    """With 13 or more ties at the maximum no threshold exists, because t = 12.57."""
    # magnitude exactly 1 in any dtype
    units = torch.tensor([1, -1, 1j, -1j], dtype=torch.complex128).repeat(4)
    places = torch.arange(16)
    blocks = {"zero": 0 * units, "negative zero": -0.0 * units, "nearly tied": units * (1 + 1e-15 * places)}
    for k in (1, 2, 11, 12, 13, 14, 15, 16):
        blocks[f"{k} ties above zeros"] = torch.where(places >= 16 - k, units, 0)
        blocks[f"{k} ties above others"] = torch.where(places < k, 1, 0.25) * units
        blocks[f"{k} near ties"] = torch.where(places < k, 1 + 1e-15 * places, 0) * units
    y = (torch.stack(list(blocks.values())) * scale).to(dtype)
    check_blocks(y, 16, tuple(blocks), "a block each")
    noise = torch.view_as_complex(values("normal", (len(y), 256 * 16, 2), dtype.to_real()))
    noise[:, 16 * 77 : 16 * 78] = y
    check_blocks(noise, 16, tuple(blocks), "among others")


# ---- FFTs ----


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("size", [2, 4, 6, 30, 64, 1000, 4096, 65_536, 261_120, 2**20, 2_096_640])
def test_compact_fourier(size: int, dtype: torch.dtype) -> None:
    x = samples(("normal", "1/k", "shifted"), (size,), dtype)
    z, back = ops.compact_fourier(x.to(DEVICE)), ops.compact_fourier(x.to(DEVICE), True)
    assert_near(z.cpu(), python_ref.compact_fourier(x), FFT[dtype])
    assert_near(back.cpu(), python_ref.compact_fourier_inverse(x), FFT[dtype])
    assert relative_error(ops.compact_fourier(z, True).cpu(), x) < ORTHOGONAL[dtype]


def assert_near(result: Tensor, expected: Tensor, tolerance: float) -> None:
    """Assert equal bits where the FFT is defined, else a small relative error."""
    if python_ref.has_defined_fft(expected.shape[1]):
        assert_agrees(result, expected)
    else:
        assert relative_error(result, expected) < tolerance


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("block_size", [16, 2, 17])
@pytest.mark.parametrize("num_blocks", [1, 2, 3, 4, 7, 64, 129, 301, 2048])
def test_project_wgnc(num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
    x = samples(("normal", "1/k"), (2 * block_size * num_blocks,), dtype)
    result, expected = (
        ops.project_wgnc(x.to(DEVICE), block_size).cpu(),
        python_ref.project_wgnc(x, block_size),
    )
    # The small coefficients of 1/k fields, which the projection enlarges, have fewer digits.
    assert_near(result, expected, 10 * FFT[dtype])
    assert float(result.double().norm()) == pytest.approx(math.sqrt(x.numel()), rel=1e-5)
