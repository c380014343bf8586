"""Tile statistics: bits of the reference, and mean and energy of the tiles after projection."""

import itertools
import math

import pytest
import torch
from bits import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import DISTRIBUTIONS, noise, values
from torch import Tensor

import noisetilt_kernels as nt
from bench.inputs import power_law
from noisetilt_kernels.backends import reference

project_tile_stats = torch.ops.noisetilt.project_tile_stats

REAL = (torch.float32, torch.float64)

# (C, H, W), tile: narrow and wide planes, sides that are not powers of two, single tiles, odd tiles, rows,
# columns
TILINGS = [
    ((4, 16, 16), (4, 4)),
    ((2, 32, 32), (8, 8)),
    ((2, 32, 64), (16, 16)),
    ((4, 12, 8), (12, 8)),
    ((8, 60, 104), (12, 8)),
    ((8, 60, 104), (4, 4)),
    ((3, 8, 12), (4, 4)),
    ((4, 6, 10), (3, 5)),
    ((4, 9, 15), (3, 3)),
    ((16, 6, 34), (6, 17)),
    ((4, 96, 10), (48, 5)),
    ((1, 128, 6), (64, 2)),
    ((1, 64, 36), (64, 12)),
    ((16, 5, 1), (5, 1)),
    ((16, 8, 3), (2, 1)),
    ((1, 1, 96), (1, 6)),
    ((1, 1, 4096), (1, 64)),
    ((1, 1, 4096), (1, 4096)),
    ((5, 2, 2), (2, 2)),
    ((4, 4, 4), (1, 2)),
    ((4, 22, 27), (4, 8)),  # from here on the tiles do not divide the plane
    ((2, 35, 40), (16, 16)),
    ((5, 7, 64), (3, 8)),
    ((1, 1, 131), (1, 16)),
    ((16, 13, 11), (13, 11)),
]


def check(
    x: Tensor, tile: tuple[int, int], chunk_sizes: tuple[int, ...] = (4, 16), context: str = ""
) -> Tensor:
    """Project samples (B, C, H, W) and compare the bits with the reference."""
    result = project_tile_stats(x, tile, chunk_sizes)
    assert_same_bits(result, reference.project_tile_stats(x, tile, chunk_sizes, 1e-3), context)
    return result


def tiles_of(x: Tensor, tile: tuple[int, int]) -> Tensor:
    """Split (B, C, H, W) into tiles (B, P, K), by reshapes alone."""
    b, c, h, w = x.shape
    th, tw = tile
    return x.reshape(b, c, h // th, th, w // tw, tw).permute(0, 1, 2, 4, 3, 5).reshape(b, -1, th * tw)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("shape", "tile"), TILINGS)
def test_every_distribution(
    shape: tuple[int, int, int], tile: tuple[int, int], distribution: str, dtype: torch.dtype
) -> None:
    x = values(distribution, (2, *shape), dtype)
    check(x, tile, (4, 16))
    check(x, tile, (1, 3, 2))


def special_tiles(dtype: torch.dtype) -> Tensor:
    """Return tiles (P, 16) near the limit of "constant": tied, nearly tied on any scale, one pixel, not
    finite, and noise.
    """
    g = torch.Generator().manual_seed(0)
    base = torch.randn(16, dtype=dtype, generator=g)
    rows = []
    for mean, exponent in itertools.product((0.0, -0.0, 1.0, -3.7, 1e-20, 1e15), range(-60, 6, 3)):
        rows.append(mean + base * 2.0**exponent * (abs(mean) or 1.0))
    for exponent in range(-960 if dtype == torch.float64 else -148, 60, 6):
        rows.append(base * 2.0**exponent)
    one_pixel = torch.zeros(16, dtype=dtype)
    one_pixel[5] = 1
    rows += [one_pixel * scale for scale in (1e-44, 1e-20, 1e-13, 1.0, -1e10, 1e18, 1e19, 1e30)]
    rows += [one_pixel.masked_fill(one_pixel == 1, special) for special in (torch.nan, torch.inf, -torch.inf)]
    rows += list(torch.randn(16 * math.ceil(len(rows) / 16) + 16 - len(rows), 16, dtype=dtype, generator=g))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("tile", [(1, 16), (4, 4), (16, 1), (2, 8)])
def test_tiles_at_the_limit_of_constant(tile: tuple[int, int], dtype: torch.dtype) -> None:
    tiles = special_tiles(dtype)
    x = tiles.view(len(tiles), *tile)[None]
    check(x, tile)
    check(x.flip(1), tile, (1,))
    check(x, tile, (7 * len(tiles),), "no chunk size divides")


@settings(max_examples=200, deadline=None)
@given(
    channels=st.integers(1, 6),
    rows=st.integers(1, 4),
    columns=st.integers(1, 12),
    rest=st.tuples(st.sampled_from([0, 0, 1, 5]), st.sampled_from([0, 0, 1, 7])),
    tile=st.tuples(st.integers(1, 40), st.integers(1, 24)).filter(lambda tile: tile[0] * tile[1] >= 2),
    chunk_sizes=st.lists(st.integers(1, 20), min_size=1, max_size=3).map(tuple),
    distribution=st.sampled_from(list(DISTRIBUTIONS)),
    scale=st.sampled_from([1.0, 1e-12, 1e17]),
    dtype=st.sampled_from(REAL),
)
def test_hypothesis_finds_no_difference(
    channels: int,
    rows: int,
    columns: int,
    rest: tuple[int, int],
    tile: tuple[int, int],
    chunk_sizes: tuple[int, ...],
    distribution: str,
    scale: float,
    dtype: torch.dtype,
) -> None:
    shape = (1, channels, rows * tile[0] + rest[0], columns * tile[1] + rest[1])
    check(values(distribution, shape, dtype) * scale, tile, chunk_sizes)


# ---- batches, strides, dtypes ----


@pytest.mark.parametrize("dtype", REAL)
def test_samples_of_a_batch_are_independent(dtype: torch.dtype) -> None:
    x = torch.stack([values(name, (4, 16, 24), dtype) for name in DISTRIBUTIONS])
    batch = check(x, (4, 8))
    for sample, projected in zip(x, batch, strict=True):
        assert_same_bits(project_tile_stats(sample, (4, 8), (4, 16)), projected)


@pytest.mark.parametrize(
    "strided",
    [
        values("1/k", (2, 4, 16, 24)).transpose(2, 3),
        values("1/k", (1, 1, 16, 24)).expand(2, 4, 16, 24),
        values("1/k", (2, 8, 16, 48))[:, ::2, :, 1::2],
        values("1/k", (2, 4, 16, 24)).to(memory_format=torch.channels_last),
    ],
    ids=["transposed", "expanded", "sliced", "channels last"],
)
def test_strided_input(strided: Tensor) -> None:
    before = strided.clone()
    result = project_tile_stats(strided, (4, 8), (4, 16))
    assert_same_bits(result, reference.project_tile_stats(strided.contiguous(), (4, 8), (4, 16), 1e-3))
    assert result.is_contiguous()
    assert_same_bits(strided, before, "the input")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    x = values("1/k", (2, 4, 16, 24)).to(dtype)
    expected = reference.project_tile_stats(x.float(), (4, 4), (4, 16), 1e-3).to(dtype)
    assert_same_bits(project_tile_stats(x, (4, 4), (4, 16)), expected)


def test_all_shapes_of_a_sample_give_the_same_result() -> None:
    """Video frames are channels; a flat sample is one row."""
    x = values("1/k", (2, 6, 4, 16, 16))
    as_image = project_tile_stats(x.flatten(1, 2), (4, 4), (4, 16))
    assert_same_bits(project_tile_stats(x, (4, 4), (4, 16)), as_image.view_as(x))
    row = values("1/k", (2, 1, 1, 4096))
    assert_same_bits(
        project_tile_stats(row.flatten(1), (1, 16), (4,)), project_tile_stats(row, (1, 16), (4,)).flatten(1)
    )
    assert_same_bits(
        project_tile_stats(row[0, 0, 0], (1, 16), (4,)), project_tile_stats(row[:1], (1, 16), (4,)).flatten()
    )


# ---- definition ----


@pytest.mark.parametrize("tile", [(4, 4), (3, 5), (1, 2), (2, 9)])
@pytest.mark.parametrize("chunk_size", [4, 5])
def test_definition_in_float64(tile: tuple[int, int], chunk_size: int) -> None:
    """Mean and energy become the projections of the input's, and the centred part keeps its direction."""
    x = values("1/k", (2, 10, 4 * tile[0], 6 * tile[1]), torch.float64) + 0.2
    k = tile[0] * tile[1]
    before, after = tiles_of(x, tile), tiles_of(project_tile_stats(x, tile, (chunk_size,)), tile)
    count = before.shape[1] // chunk_size

    def centred(tiles: Tensor) -> Tensor:
        return tiles - tiles.mean(dim=2, keepdim=True)

    def energy(tiles: Tensor) -> Tensor:
        return centred(tiles).square().sum(dim=2)

    project_2os = torch.ops.noisetilt.project_2os
    m = project_2os(math.sqrt(k) * before.mean(dim=2), *nt.confidence_table(count, chunk_size))
    e = project_2os(energy(before), *nt.confidence_table(count, chunk_size, reference=nt.ChiSquare(k - 1)))
    assert bool((m != math.sqrt(k) * before.mean(dim=2)).any())
    torch.testing.assert_close(math.sqrt(k) * after.mean(dim=2), m, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(energy(after), e, rtol=1e-11, atol=0)
    cosine = (centred(before) * centred(after)).sum(dim=2) / (energy(before) * energy(after)).sqrt()
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=1e-11, atol=0)


@pytest.mark.parametrize("tile", [(2, 4), (3, 3)])
def test_a_constant_tile_takes_the_alternating_direction(tile: tuple[int, int]) -> None:
    k = tile[0] * tile[1]
    alternating = torch.tensor([1.0, -1.0] * (k // 2) + [0.0] * (k % 2))
    for constant in (0.0, 0.3, 1e4):
        after = tiles_of(project_tile_stats(torch.full((1, 4, *tile), constant), tile, (4,)), tile)[0]
        centred = after - after.mean(dim=1, keepdim=True)
        expected = centred[:, :1] * alternating
        assert bool((centred[:, 0] > 0).all())
        torch.testing.assert_close(centred, expected, rtol=1e-5, atol=1e-6)


def test_statistics_are_unchanged_if_no_chunk_size_divides() -> None:
    x = values("1/k", (2, 3, 8, 8))
    assert_same_bits(project_tile_stats(x, (8, 8), (2, 4)), x)


def test_unchanged_tiles_are_copied() -> None:
    x = noise(4, (16, 64, 64))
    after = project_tile_stats(x, (8, 8), (4, 16))
    changed = (tiles_of(after, (8, 8)) != tiles_of(x, (8, 8))).any(dim=2)
    assert float(changed.double().mean()) < 0.02
    assert bool(changed.any())


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_a_tile_that_is_not_finite_becomes_nan(special: float, dtype: torch.dtype) -> None:
    x = noise(2, (4, 16, 16), dtype)
    x[1, 2, 5, 6] = special
    after = tiles_of(check(x, (4, 4)), (4, 4))
    bad = torch.zeros(2, 64, dtype=torch.bool)
    bad[1, 2 * 16 + 1 * 4 + 1] = True
    assert bool((after.isnan() == bad[..., None]).all())


def test_a_point_with_other_tile_directions_is_not_nearer() -> None:
    """Among tiles with the new mean and energy, x' is the nearest to x."""
    x = power_law(1.0, (4, 16, 16))[None]
    projected = project_tile_stats(x, (4, 4), (4,))
    before, after = tiles_of(x, (4, 4)), tiles_of(projected, (4, 4))
    mean = after.mean(dim=2, keepdim=True)
    energy = (after - mean).square().sum(dim=2, keepdim=True)
    for spread, seed in itertools.product((1e-4, 1e-1, 10.0), range(20)):
        other = after + spread * values("normal", after.shape, torch.float64, seed)
        other = other - other.mean(dim=2, keepdim=True)
        other = mean + other * (energy / other.square().sum(dim=2, keepdim=True)).sqrt()
        assert bool(((other - before).norm(dim=2) >= (after - before).norm(dim=2) * (1 - 1e-12)).all())
