"""Tilings: how a plane is cut into tiles that do not divide it, and what the operators do in each region."""

import pytest
import torch
from bits import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import values
from torch import Tensor

import noisetilt_kernels as nt
from noisetilt_kernels.python_ref import Region, mixing_regions, tile_regions

Pair = tuple[int, int]


def rectangles(regions: tuple[Region, ...]) -> list[tuple[int, int, int, int, Pair]]:
    return [tuple(region) for region in regions]  # type: ignore[misc]


def owners(plane: Pair, regions: tuple[Region, ...]) -> Tensor:
    """Return how many tiles hold each value of a plane."""
    count = torch.zeros(1, 1, *plane, dtype=torch.int64)
    for region in regions:
        assert region.height % region.tile[0] == 0
        assert region.width % region.tile[1] == 0
        region.of(count).add_(1)
    return count[0, 0]


# ---- closed forms ----


def test_a_tile_that_divides_the_plane_has_one_region() -> None:
    assert rectangles(tile_regions((64, 96), (8, 16))) == [(0, 0, 64, 96, (8, 16))]
    assert rectangles(mixing_regions((6, 10), (3, 2))) == [(0, 0, 6, 10, (3, 2))]


def test_a_latent_of_qwen_image() -> None:
    """166 = 2*5 + 39*4 = 19*8 + 2*7 = 6*17 + 4*16."""
    heights = {4: (10, 5, 156, 4), 8: (152, 8, 14, 7), 16: (102, 17, 64, 16)}
    for side, (first, longer, second, shorter) in heights.items():
        assert rectangles(tile_regions((166, 240), (side, 16))) == [
            (0, 0, first, 240, (longer, 16)),
            (first, 0, second, 240, (shorter, 16)),
        ]
    assert [region.tile for region in tile_regions((166, 166), (16, 16))] == [
        (17, 17),
        (17, 16),
        (16, 17),
        (16, 16),
    ]


def test_mixing_tiles_are_cut_into_pairs() -> None:
    """166 = 20*8 + 6 and 14 = 6 + 2*4."""
    assert rectangles(mixing_regions((8, 166), (8, 8))) == [(0, 0, 8, 160, (8, 8)), (0, 160, 8, 6, (8, 6))]
    assert rectangles(mixing_regions((14, 9), (4, 3))) == [(0, 0, 6, 9, (6, 3)), (6, 0, 8, 9, (4, 3))]


def test_the_last_column_of_an_odd_plane_is_not_mixed() -> None:
    assert rectangles(mixing_regions((5, 7), (5, 6))) == [(0, 0, 5, 6, (5, 6))]
    assert rectangles(mixing_regions((7, 1), (6, 1))) == [(0, 0, 6, 1, (6, 1))]
    x = values("normal", (1, 2, 5, 7))
    assert_same_bits(nt.butterfly(x, (5, 6), 3)[..., 6].contiguous(), x[..., 6].contiguous())


# ---- every plane ----

PLANES = st.tuples(st.integers(1, 300), st.integers(1, 300))


@settings(max_examples=500, deadline=None)
@given(plane=PLANES, data=st.data())
def test_the_tiles_fill_the_plane_and_are_nearly_equal(plane: Pair, data: st.DataObject) -> None:
    tile = tuple(data.draw(st.integers(1, side)) for side in plane)
    regions = tile_regions(plane, tile)
    assert bool((owners(plane, regions) == 1).all())
    for axis in (0, 1):
        lengths = {region.tile[axis] for region in regions}
        assert max(lengths) - min(lengths) <= 1
        assert 2 * tile[axis] <= 3 * min(lengths)
        assert 2 * max(lengths) <= 3 * tile[axis] + 1
    if tile[0] * tile[1] > 1:
        assert min(region.tile[0] * region.tile[1] for region in regions) > 1


@settings(max_examples=500, deadline=None)
@given(plane=PLANES, data=st.data())
def test_mixing_tiles_are_even_and_leave_out_at_most_a_line(plane: Pair, data: st.DataObject) -> None:
    tile = tuple(data.draw(st.integers(1, side)) for side in plane)
    if tile[0] * tile[1] % 2:
        return
    regions = mixing_regions(plane, tile)
    assert all(region.tile[0] * region.tile[1] % 2 == 0 for region in regions)
    expected = torch.ones(plane, dtype=torch.int64)
    if plane[0] * plane[1] % 2:
        expected[:, -1:] = 0 if plane[1] > 1 else 1
        expected[-1:] = expected[-1:] if plane[1] > 1 else 0
    assert torch.equal(owners(plane, regions), expected)


# ---- the operators work on each region as if it was a sample of its own ----

CUTS = [((8, 22, 27), (4, 8)), ((4, 13, 5), (6, 5)), ((3, 5, 40), (5, 16)), ((4, 9, 9), (2, 4))]


@pytest.mark.parametrize(("shape", "tile"), CUTS)
def test_each_region_has_its_own_statistics(shape: tuple[int, int, int], tile: Pair) -> None:
    x = values("1/k", (2, *shape))
    result = nt.project_tile_stats(x, tile, (4, 1))
    regions = tile_regions(shape[1:], tile)
    assert len(regions) > 1 or regions[0].tile != tile
    for region in regions:
        alone = nt.project_tile_stats(region.of(x), region.tile, (4, 1))
        assert_same_bits(region.of(result).contiguous(), alone, str(region))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("shape", "tile"), CUTS)
def test_each_region_is_mixed_alone(shape: tuple[int, int, int], tile: Pair, inverse: bool) -> None:
    x = values("1/k", (2, *shape))
    tile = tile if tile[0] * tile[1] % 2 == 0 else (tile[0], tile[1] - 1)
    result = nt.butterfly(x, tile, 4, inverse)
    for region in mixing_regions(shape[1:], tile):
        alone = nt.butterfly(region.of(x), region.tile, 4, inverse)
        assert_same_bits(region.of(result).contiguous(), alone, str(region))
    torch.testing.assert_close(nt.butterfly(result, tile, 4, not inverse), x, rtol=1e-4, atol=1e-4)


def test_regions_of_few_tiles_are_not_changed() -> None:
    """One 3x3 tile in each plane: no chunk size divides 3 tiles. The others are projected."""
    x = 10 * values("normal", (1, 3, 5, 8))
    regions = tile_regions((5, 8), (2, 3))
    assert [region.tiles_per_plane for region in regions] == [2, 1, 2, 1]
    result = nt.project_tile_stats(x, (2, 3), (2,))
    for region in regions:
        unchanged = bool((region.of(result) == region.of(x)).all())
        assert unchanged == (region.tiles_per_plane == 1)
