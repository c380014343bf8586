"""Configurations: the presets of DESIGN section 5, and their resolution on a shape."""

import dataclasses

import pytest
import torch
from bits import assert_same_bits
from inputs import values

import noisetilt_kernels as nt
from noisetilt_kernels.config import PRESETS, Sample, flatten, resolve, resolve_preset, unflatten

FULL = nt.FULL


def test_presets_are_those_of_the_design() -> None:
    assert PRESETS == ("flux", "wan", "auto")
    flux, wan = nt.preset("flux"), nt.preset("wan")
    assert flux.chunk_sizes == wan.chunk_sizes == (4, 16)
    assert flux.tile_sizes == ((4, 4), (8, 8), (16, 16))
    assert wan.tile_sizes == ((4, 4), (12, 8))
    assert flux.alpha == wan.alpha == 1e-3
    assert resolve(flux, Sample(16, 64, 64)).mixing == (((64, 64), 12), ((8, 8), 6))
    assert resolve(wan, Sample(336, 60, 104)).mixing == (((60, 104), 13), ((4, 8), 5))


# (C, H, W), chunk sizes, tile sizes, mixing domains of "auto", worked out by hand from the table of DESIGN
# section 5
AUTO = [
    ((16, 64, 64), (4, 16), ((4, 4), (8, 8), (16, 16)), (((64, 64), 12), ((8, 8), 6))),
    ((336, 60, 104), (4, 16), ((4, 4), (12, 8)), (((60, 104), 13), ((4, 8), 5))),
    ((16, 96, 170), (4, 16), ((4, 5), (8, 10), (16, 17)), (((96, 170), 14), ((8, 10), 7))),
    ((4, 128, 128), (4, 16), ((4, 4), (8, 8), (16, 16)), (((128, 128), 14), ((8, 8), 6))),
    ((32, 32, 32), (4, 16), ((4, 4), (8, 8), (16, 16)), (((32, 32), 10), ((8, 8), 6))),
    ((16, 128, 128), (4, 16), ((4, 4), (8, 8), (16, 16)), (((128, 128), 14), ((8, 8), 6))),
    ((32, 60, 104), (4, 16), ((4, 4), (6, 8), (15, 13)), (((60, 104), 13), ((6, 8), 6))),
    ((16, 166, 166), (4, 16), ((4, 4), (8, 8), (16, 16)), (((166, 166), 15), ((8, 8), 6))),  # 166 = 2 * 83
    ((16, 134, 240), (4, 16), ((4, 4), (8, 8), (16, 16)), (((134, 240), 15), ((8, 8), 6))),  # 134 = 2 * 67
    # 90 has 3, 9 and 15 near the targets; 9x9 has no even number of values
    ((16, 81, 90), (4, 16), ((3, 3), (9, 9), (16, 15)), (((81, 90), 13), ((9, 6), 6))),
    ((16, 45, 47), (4, 16), ((3, 4), (9, 8), (15, 16)), (((45, 46), 12), ((9, 8), 7))),
    ((16, 1, 131), (4, 16), ((1, 4), (1, 8), (1, 16)), (((1, 130), 8), ((1, 8), 4))),  # tiles up to 1x10
    ((4, 3, 5), (4,), ((3, 5),), (((3, 4), 4),)),  # repeated tiles are dropped
    ((2, 1, 2), (4,), ((1, 2),), (((1, 2), 1),)),
    ((4, 1, 1), (4,), (), ()),  # no tile of two values
    ((4, 7, 2), (4,), ((4, 2), (7, 2)), (((7, 2), 4),)),
    # 16x16 would cut 88 into 11 tiles of 14 and 15, and no chunk size divides 3 x 11 x 11 of them
    ((3, 88, 88), (4, 16), ((4, 4), (8, 8), (11, 11)), (((88, 88), 13), ((8, 8), 6))),
    ((16, 90, 90), (4, 16), ((3, 3), (9, 9), (15, 15)), (((90, 90), 13), ((9, 6), 6))),  # 6 divides 90
]


@pytest.mark.parametrize(("shape", "chunk_sizes", "tile_sizes", "mixing"), AUTO)
def test_auto(shape: tuple[int, int, int], chunk_sizes: tuple, tile_sizes: tuple, mixing: tuple) -> None:
    config = resolve_preset("auto", Sample(*shape), 1e-3)
    assert config.chunk_sizes == chunk_sizes
    assert config.tile_sizes == tile_sizes
    assert dict(config.mixing) == dict(mixing)


# length, tile lengths (nearest to 16, 64, 256), small mixing tile
FLAT = [
    (65_536, (16, 64, 256), 64),
    (4096, (16, 64, 256), 64),
    (1000, (20, 50, 250), 50),  # 20 is nearer to 16 than 10; 50 than 100
    (48, (16, 48), 48),
    (24, (12, 24), 24),  # 12 is nearer to 16 than 24
    (4, (4,), 4),
    (20, (20,), 20),
    (2024, (11, 64, 253), 64),  # 16 would leave 118 tiles of 17 values, which 4 does not divide
]


@pytest.mark.parametrize(("size", "lengths", "small"), FLAT)
def test_auto_on_flat_vectors(size: int, lengths: tuple[int, ...], small: int) -> None:
    config = resolve_preset("auto", Sample(1, 1, size, flat=True), 1e-3)
    assert config.tile_sizes == tuple((1, length) for length in lengths)
    assert dict(config.mixing) == {(1, size): (size - 1).bit_length(), (1, small): (small - 1).bit_length()}
    assert config.chunk_sizes == ((4, 16) if size % 16 == 0 else (4,))


@pytest.mark.parametrize(("sample", "name"), [(Sample(16, 64, 64), "flux"), (Sample(336, 60, 104), "wan")])
def test_auto_is_the_preset_on_its_exact_shape(sample: Sample, name: str) -> None:
    assert resolve_preset("auto", sample, 1e-3) == resolve_preset(name, sample, 1e-3)
    assert resolve_preset("auto", sample, 0.01).alpha == 0.01


def test_ties_between_divisors_go_to_the_smaller() -> None:
    """30 has 3 and 5 at one distance from 4, and 6 and 10 at one distance from 8."""
    assert resolve_preset("auto", Sample(8, 30, 2), 1e-3).tile_sizes == ((3, 2), (6, 2), (15, 2))
    assert resolve_preset("auto", Sample(8, 2, 30), 1e-3).tile_sizes == ((2, 3), (2, 6), (2, 15))


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_resolving_twice_changes_nothing(name: str) -> None:
    sample = Sample(16, 96, 48)
    config = resolve_preset(name, sample, 1e-3)
    assert resolve(config, sample) == config
    assert FULL not in [tile for tile, _ in config.mixing]
    assert 0 not in [repeats for _, repeats in config.mixing]


def test_a_configuration_is_frozen_hashable_and_normalised() -> None:
    config = nt.WhiteningConfig([4], [[2, 4]], [[FULL, 0], [[2, 2], 3]])
    assert config == nt.WhiteningConfig((4,), ((2, 4),), ((FULL, 0), ((2, 2), 3)))
    assert hash(config) == hash(nt.WhiteningConfig((4,), ((2, 4),), ((FULL, 0), ((2, 2), 3))))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.alpha = 0.5  # type: ignore[misc]
    assert dataclasses.replace(config, alpha=0.5).alpha == 0.5
    assert unflatten(*flatten(config)) == config


# ---- preset ----


@pytest.mark.parametrize("shape", [(64,), (3, 64), (16, 96, 48), (2, 16, 96, 48), (1, 4, 3, 16, 8)])
def test_auto_with_a_shape_is_the_configuration_of_whiten(shape: tuple[int, ...]) -> None:
    config = nt.preset("auto", shape)
    x = values("1/k", shape)
    assert config == nt.preset("auto", x.shape)
    assert FULL not in [tile for tile, _ in config.mixing]
    assert 0 not in [repeats for _, repeats in config.mixing]
    assert_same_bits(nt.whiten(x, config), nt.whiten(x))


def test_a_preset_with_a_shape_is_resolved() -> None:
    assert nt.preset("flux", (16, 64, 64)) == resolve(nt.preset("flux"), Sample(16, 64, 64))
    assert nt.preset("auto", (2, 16, 64, 64)) == nt.preset("flux", (16, 64, 64))
    with pytest.raises(ValueError, match="tile 12x8 does not fit into the 8x64 plane"):
        nt.preset("wan", (16, 8, 64))


# ---- whiten ----


def test_whiten_takes_a_name_or_a_configuration_and_alpha() -> None:
    x = values("1/k", (2, 2, 16, 32))
    whiten = torch.ops.noisetilt.whiten
    assert_same_bits(nt.whiten(x, "flux"), whiten(x, "flux"))
    assert_same_bits(nt.whiten(x, nt.preset("flux")), whiten(x, "flux"))
    assert_same_bits(nt.whiten(x, "flux", alpha=0.01), whiten(x, "flux", 0.01))
    config = dataclasses.replace(nt.preset("flux"), alpha=0.5)
    assert_same_bits(nt.whiten(x, config), whiten(x, "flux", 0.5))
    assert_same_bits(nt.whiten(x, config, alpha=0.01), whiten(x, "flux", 0.01))
    assert_same_bits(nt.whiten(x, alpha=0.01), whiten(x, "auto", 0.01))


# ---- text ----


def test_a_configuration_prints_itself_readably() -> None:
    config = nt.preset("flux", (16, 64, 64))
    assert str(config) == repr(config)
    assert str(config) == (
        "WhiteningConfig(chunks: 4, 16; tiles: 4x4, 8x8, 16x16; "
        "mixing: 64x64 in 12 steps, 8x8 in 6 steps; alpha: 0.001)"
    )
    assert "mixing: full plane in ceil(log2) steps, 4x8 in ceil(log2) steps; alpha: 0.001" in str(
        nt.preset("wan")
    )
    config = nt.WhiteningConfig([4], [], [], 0.5)
    assert str(config) == "WhiteningConfig(chunks: 4; tiles: none; mixing: none; alpha: 0.5)"
    assert "2x4 in 1 step;" in str(nt.WhiteningConfig([4], [], [((2, 4), 1)]))


def test_a_similar_name_is_suggested() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'flx' \(did you mean 'flux'\?\); valid: "):
        nt.preset("flx")
    with pytest.raises(ValueError, match="unknown preset 'sdxl'; valid: "):
        nt.preset("sdxl")
