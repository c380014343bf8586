"""The Triton kernels of tile statistics and W, interpreted, have the bits of the reference."""

import math
from collections.abc import Callable

import pytest
import torch
from bits import assert_same_bits
from inputs import DISTRIBUTIONS, values
from torch import Tensor

from noisetilt_kernels.backends import reference
from noisetilt_kernels.backends.triton import operations as kernels
from noisetilt_kernels.backends.triton import tile_stats
from noisetilt_kernels.config import FULL, Sample, WhiteningConfig, resolve
from noisetilt_kernels.python_ref.tile_stats import CONSTANT_ENERGY, CONSTANT_RATIO

REAL = (torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow))

TILES = [  # (C, H, W), tile
    ((2, 8, 8), (4, 4)),
    ((2, 8, 8), (8, 8)),
    ((4, 12, 20), (3, 5)),
    ((4, 12, 20), (12, 10)),
    ((1, 1, 96), (1, 48)),
    ((3, 7, 9), (7, 3)),
    ((8, 4, 6), (1, 2)),
    ((8, 10, 11), (4, 4)),  # from here on the tiles do not divide the plane
    ((4, 9, 6), (4, 6)),
    ((3, 7, 9), (7, 5)),
]


def check_tile_stats(
    x: Tensor, tile: tuple[int, int], chunk_sizes: tuple[int, ...], context: str = ""
) -> None:
    expected = reference.project_tile_stats(x, tile, chunk_sizes, 1e-3)
    assert_same_bits(kernels.project_tile_stats(x, tile, chunk_sizes, 1e-3), expected, context)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(("shape", "tile"), TILES)
def test_tile_stats(shape: tuple[int, ...], tile: tuple[int, int], dtype: torch.dtype) -> None:
    x = torch.stack([values(name, shape, dtype) for name in ("1/k", "few values", "everything", "shifted")])
    check_tile_stats(x, tile, (4, 16))


@pytest.mark.parametrize("dtype", REAL)
def test_tile_stats_of_distributions(dtype: torch.dtype) -> None:
    for name in DISTRIBUTIONS:
        check_tile_stats(values(name, (1, 2, 4, 8), dtype), (2, 4), (4,), name)


@pytest.mark.parametrize("dtype", REAL)
def test_nearly_constant_tiles(dtype: torch.dtype) -> None:
    """Tiles on both sides of the limit below which a tile counts as constant."""
    base = values("normal", (1, 4, 8, 8), dtype)
    for scale in (2.0**-17, 2.0**-18, 2.0**-19, 2.0**-47, 2.0**-48, 0.0):
        check_tile_stats(0.7 + scale * base, (4, 4), (4,), f"around 0.7, {scale}")
        check_tile_stats(scale * 2.0**-40 * base, (4, 4), (4,), f"around 0, {scale}")


@pytest.mark.parametrize("dtype", REAL)
def test_tiles_at_the_limit_of_constant(dtype: torch.dtype) -> None:
    """E = K (ratio mean)^2 or E = the least energy, and values to either side."""
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=dtype).repeat(4)  # not the direction of constant tiles
    ratio, energy = CONSTANT_RATIO[dtype], CONSTANT_ENERGY[dtype]
    x = torch.stack([signs, signs]).view(1, 2, 4, 4)
    for factor in (0.75, 1.0, 1.25):
        check_tile_stats(1 + factor * ratio * x, (4, 4), (2,), f"around 1, {factor}")
        check_tile_stats(factor * math.sqrt(energy / 16) * x, (4, 4), (2,), f"around 0, {factor}")


def test_numbers_of_tiles_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """64-bit tile numbers do not change bits. The limit is lowered, as that many tiles do not fit here."""
    monkeypatch.setattr(tile_stats, "_HUGE", 0)
    tile_stats._plan.cache_clear()
    for shape, tile in TILES[:4]:
        check_tile_stats(values("1/k", (2, *shape)), tile, (4,), f"{shape}, {tile}")
    tile_stats._plan.cache_clear()


def test_the_input_is_unchanged() -> None:
    x = values("1/k", (1, 2, 8, 8))
    before = x.clone()
    kernels.project_tile_stats(x, (4, 4), (4,), 1e-3)
    kernels.whiten(x, whitening((2, 8, 8), mixing=((FULL, 1),)))
    assert_same_bits(x, before)


def test_chunk_sizes_that_do_not_divide_are_skipped() -> None:
    x = values("1/k", (2, 3, 8, 8))
    for chunk_sizes in ((5,), (5, 4), (3, 7, 2)):
        check_tile_stats(x, (4, 4), chunk_sizes, str(chunk_sizes))
    check_tile_stats(values("everything", (2, 3, 8, 8)), (4, 4), (5,))


@pytest.mark.slow
def test_tile_stats_in_many_blocks(set_blocks: Callable[..., None]) -> None:
    set_blocks("tile_stats_kernel", values=16)
    for shape, tile in TILES[:4]:
        check_tile_stats(values("1/k", (2, *shape)), tile, (4,), f"{shape}, {tile}")


def whitening(shape: tuple[int, ...], **changes: object) -> WhiteningConfig:
    config = {
        "chunk_sizes": (4, 16),
        "tile_sizes": ((2, 2), (4, 4)),
        "mixing": ((FULL, 0), ((4, 4), 3)),
        **changes,
    }
    return resolve(WhiteningConfig(**config), Sample(*shape))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("name", ["normal", "1/k", "few values", "spikes"])
def test_whiten(name: str, dtype: torch.dtype) -> None:
    x = values(name, (1, 2, 8, 8), dtype)
    config = whitening((2, 8, 8))
    assert_same_bits(kernels.whiten(x, config), reference.whiten(x, config))


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        (
            (3, 6, 10),
            {"chunk_sizes": (5, 12), "tile_sizes": ((3, 5),), "mixing": (((6, 10), 4), ((3, 2), 1))},
        ),
        (
            (8, 10, 11),
            {"tile_sizes": ((4, 4), (5, 11), (8, 8)), "mixing": (((10, 11), 2), ((4, 8), 2))},
        ),
        ((4, 9, 13), {"chunk_sizes": (4,), "tile_sizes": ((3, 13), (4, 6)), "mixing": ((FULL, 2),)}),
        ((2, 8, 8), {"tile_sizes": ()}),
        ((2, 8, 8), {"mixing": ()}),
        ((1, 1, 64), {"tile_sizes": ((1, 16), (1, 4)), "mixing": (((1, 64), 6), ((1, 16), 2))}),
    ],
)
def test_whiten_of_other_configurations(shape: tuple[int, ...], changes: dict) -> None:
    x = values("1/k", (1, *shape))
    config = whitening(shape, **changes)
    assert_same_bits(kernels.whiten(x, config), reference.whiten(x, config))


def test_whiten_in_many_blocks(set_blocks: Callable[..., None]) -> None:
    set_blocks("sort_runs_kernel", values=128, entries=32)
    set_blocks("rank_in_runs_kernel", lookups=128, runs=4)
    set_blocks("project_vectors_kernel", entries=16)
    set_blocks("tile_stats_kernel", values=64)
    set_blocks("butterfly_kernel", values=16)
    set_blocks("fft_kernel", values=16)
    set_blocks("compact_spectrum_kernel", coefficients=16)
    set_blocks("find_non_finite_kernel", values=32)
    set_blocks("finite_or_nan_kernel", values=32)
    x = values("1/k", (1, 2, 8, 8))
    config = whitening((2, 8, 8), mixing=((FULL, 2),))
    assert_same_bits(kernels.whiten(x, config), reference.whiten(x, config))


@pytest.mark.parametrize("place", [0, 40, 127])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_makes_its_sample_nan(
    value: float, place: int, set_blocks: Callable[..., None]
) -> None:
    set_blocks("find_non_finite_kernel", values=32)
    config = whitening((2, 8, 8), mixing=())
    x = values("normal", (2, 2, 8, 8))
    clean = kernels.whiten(x, config)
    x[1].view(-1)[place] = value
    result = kernels.whiten(x, config)
    assert result[1].isnan().all()
    assert_same_bits(result[0], clean[0])


def test_the_largest_finite_values_count_as_finite() -> None:
    config = whitening((2, 8, 8), mixing=())
    x = values("largest", (1, 2, 8, 8))
    assert_same_bits(kernels.whiten(x, config), reference.whiten(x, config))
