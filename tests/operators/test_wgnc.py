"""WGNC: bits of the reference, an independent root finder, degenerate blocks, numbers of the paper."""

import math

import numpy as np
import pytest
import torch
from bits import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import DISTRIBUTIONS, noise, values
from scipy.optimize import brentq
from tolerances import BLOCK_NORM, FFT, cosine, relative_error
from torch import Tensor

from noisetilt_kernels import python_ref

project_wgnc = torch.ops.noisetilt.project_wgnc
project_wgnc_blocks = torch.ops.noisetilt.project_wgnc_blocks

COMPLEX = (torch.complex64, torch.complex128)
BLOCK_SIZES = (2, 3, 4, 5, 7, 8, 15, 16, 17, 32, 33, 64)
LARGEST_POWER = 7.1845  # of one coefficient after the projection, for B = 16


def l1_target(block_size: int) -> float:
    return math.sqrt(math.pi) / 2 * block_size


def complex_values(
    name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.complex64, seed: int = 0
) -> Tensor:
    """Return complex numbers with real and imaginary parts of the named distribution."""
    return torch.view_as_complex(values(name, (*shape, 2), dtype.to_real(), seed))


def check(y: Tensor, block_size: int = 16, context: str = "") -> Tensor:
    """Project spectra (B, n) and compare the bits with the reference."""
    result = project_wgnc_blocks(y, block_size)
    assert_same_bits(result, python_ref.project_wgnc_blocks(y, block_size), context)
    return result


def check_norms(result: Tensor, block_size: int) -> None:
    """Assert that every block has |.|_1 = a and |.|_2^2 = B."""
    radii = result.to(torch.complex128).abs().unflatten(-1, (-1, block_size))
    tolerance = BLOCK_NORM[result.dtype] * block_size
    l1, energy = radii.sum(dim=-1), radii.square().sum(dim=-1)
    torch.testing.assert_close(l1, torch.full_like(l1, l1_target(block_size)), rtol=0, atol=tolerance)
    torch.testing.assert_close(energy, torch.full_like(energy, block_size), rtol=0, atol=2 * tolerance)


# ---- equality with the reference ----


@pytest.mark.parametrize("dtype", COMPLEX)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_every_distribution(block_size: int, distribution: str, dtype: torch.dtype) -> None:
    for num_blocks in (1, 3, 4, 21):
        y = complex_values(distribution, (2, num_blocks * block_size), dtype, seed=num_blocks)
        result = check(y, block_size, f"{num_blocks} blocks")
        whole = y.unflatten(1, (-1, block_size)).isfinite().all(dim=2)
        if distribution != "everything":
            check_norms(result.unflatten(1, (-1, block_size))[whole], block_size)


def degenerate_blocks(dtype: torch.dtype) -> dict[str, Tensor]:
    """Degenerate blocks of 16 coefficients, by name."""
    phases = torch.polar(torch.ones(16, dtype=torch.float64), torch.arange(16, dtype=torch.float64))
    one_pixel = torch.zeros(16, dtype=torch.complex128)
    one_pixel[5] = 3 - 4j
    signed_zeros = torch.view_as_complex(torch.tensor([[-0.0, -0.0], [0.0, -0.0]] * 8, dtype=torch.float64))
    # magnitude exactly 1 in any dtype
    units = torch.tensor([1, -1, 1j, -1j], dtype=torch.complex128).repeat(4)
    blocks = {
        "all zero": torch.zeros(16, dtype=torch.complex128),
        "zeros of either sign": signed_zeros,
        "one pixel": one_pixel,
        "all equal": torch.full((16,), 2.0 + 0j, dtype=torch.complex128),
        "all of one magnitude": units,
        "nearly of one magnitude": phases,
        "nearly tied": units * (1 + 1e-15 * torch.arange(16)),
        "nearly tied, zero": 1e-15 * units * torch.arange(16),
        "tied but one": torch.where(torch.arange(16) == 7, 0.5, 1) * units,
    }
    for k in (2, 11, 12, 13, 14, 15):  # t = 12.57: with 13 ties no threshold exists
        blocks[f"{k} ties above zeros"] = torch.where(torch.arange(16) >= 16 - k, units, 0)
        blocks[f"{k} ties above others"] = torch.where(torch.arange(16) < k, 1, 0.25) * units
        blocks[f"{k} near ties above zeros"] = (
            torch.where(torch.arange(16) < k, 1 + 1e-15 * torch.arange(16), 0) * units
        )
    return {name: block.to(dtype) for name, block in blocks.items()}


@pytest.mark.parametrize("dtype", COMPLEX)
@pytest.mark.parametrize("name", degenerate_blocks(torch.complex64))
def test_degenerate_blocks(name: str, dtype: torch.dtype) -> None:
    block = degenerate_blocks(dtype)[name]
    for scale in (1.0, 2.0**-60, 2.0**60):
        result = check(block[None] * scale, 16, f"times {scale}")
        check_norms(result, 16)
        # among ordinary blocks, in every lane
        others = complex_values("normal", (9, 16), dtype)
        for lane in range(9):
            mixed = others.clone()
            mixed[lane] = block * scale
            together = check(mixed.flatten()[None], 16).view(9, 16)
            assert_same_bits(together[lane], result[0], f"block {lane}")


@pytest.mark.parametrize("dtype", COMPLEX)
@pytest.mark.parametrize("k", [13, 14, 16])
def test_ties_that_have_no_threshold(k: int, dtype: torch.dtype) -> None:
    """The first tied coefficient stands out, the others share the rest, phases are kept, zero has phase 1."""
    units = torch.tensor([1, -1, 1j, -1j], dtype=dtype).repeat(4)
    block = torch.where(torch.arange(16) >= 16 - k, units, 0.5 * units)
    a = l1_target(16)
    first = (a + math.sqrt((k - 1) * (k * 16 - a * a))) / k
    radii = torch.tensor([0.0] * (16 - k) + [first] + [(a - first) / (k - 1)] * (k - 1), dtype=torch.float64)
    assert relative_error(check(block[None])[0], radii * units) < BLOCK_NORM[dtype]
    if k == 16:
        assert relative_error(check(0 * block[None])[0], radii.to(dtype)) < BLOCK_NORM[dtype]


@pytest.mark.parametrize("dtype", COMPLEX)
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_a_block_that_is_not_finite_becomes_nan(special: float, dtype: torch.dtype) -> None:
    y = complex_values("normal", (2, 160), dtype)
    untouched = project_wgnc_blocks(y)
    for part in range(2):
        bad = y.clone()
        torch.view_as_real(bad)[1, 37, part] = special
        result = check(bad)
        assert bool(torch.view_as_real(result)[1, 32:48].isnan().all())
        result[1, 32:48] = untouched[1, 32:48]
        assert_same_bits(result, untouched)


@settings(max_examples=300, deadline=None)
@given(
    block_size=st.integers(2, 40),
    num_blocks=st.integers(1, 9),
    distribution=st.sampled_from(list(DISTRIBUTIONS)),
    rounded=st.booleans(),
    dtype=st.sampled_from(COMPLEX),
    seed=st.integers(0, 1000),
)
def test_hypothesis_finds_no_difference(
    block_size: int, num_blocks: int, distribution: str, rounded: bool, dtype: torch.dtype, seed: int
) -> None:
    y = complex_values(distribution, (1, num_blocks * block_size), dtype, seed)
    check(torch.view_as_complex(torch.view_as_real(y).round()) if rounded else y, block_size)


# ---- an independent solution ----


def by_root_finding(block: np.ndarray) -> np.ndarray:
    """Project one block. The threshold is found by bracketing."""
    size = len(block)
    t, a, r = math.pi * size / 4, l1_target(size), np.abs(block)

    def excess(threshold: float) -> float:
        u = np.maximum(r - threshold, 0)
        return float(u.sum() ** 2 - t * (u * u).sum()) / float(u.sum() ** 2)

    top = np.sort(r)[-math.floor(t) - 1]  # above it too few coefficients remain
    low = top - 1.0
    while excess(low) < 0:
        low = top - 2 * (top - low)
    threshold = brentq(excess, low, top * (1 - 1e-15) if excess(top) > 0 else top, xtol=1e-15, rtol=1e-15)
    u = np.maximum(r - threshold, 0)
    return a * u / u.sum() * block / r


@pytest.mark.parametrize("block_size", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("distribution", ["normal", "sorted", "1/k", "shifted", "spikes", "tiny"])
def test_against_an_independent_root_finder(distribution: str, block_size: int) -> None:
    y = complex_values(distribution, (60, block_size), torch.complex128)
    # noise, against ties
    y = y + 1e-3 * y.abs().max() * complex_values("normal", (60, block_size), torch.complex128, seed=1)
    # the result does not depend on the scale, but the root finder's tolerances do
    scale = y.abs().amax(dim=1, keepdim=True)
    expected = np.stack([by_root_finding(block) for block in (y / scale).numpy()])
    result = project_wgnc_blocks(y.flatten(), block_size).view_as(y)
    assert relative_error(result, torch.from_numpy(expected)) < 1e-9


@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("distribution", ["normal", "1/k", "spikes", "few values"])
def test_no_random_feasible_point_is_nearer(distribution: str, block_size: int) -> None:
    y = complex_values(distribution, (50, block_size), torch.complex128)
    nearest = project_wgnc_blocks(y.flatten(), block_size).view_as(y)
    for seed, spread in enumerate((1e-5, 1e-3, 1e-1, 1.0) * 10):
        start = nearest + spread * complex_values("normal", y.shape, torch.complex128, seed)
        other = project_wgnc_blocks(start.flatten(), block_size).view_as(y)
        assert bool(((other - y).norm(dim=1) >= (nearest - y).norm(dim=1) * (1 - 1e-12)).all())


# ---- samples, strides, dtypes ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block_size", [2, 8, 16, 32])
@pytest.mark.parametrize("size", [64, 192, 4096, 6400, 65_536])
def test_samples_are_the_reference(size: int, block_size: int, dtype: torch.dtype) -> None:
    """Compare bits where the FFT is defined, else up to rounding."""
    x = noise(3, (size,), dtype)
    result, expected = project_wgnc(x, block_size), python_ref.project_wgnc(x, block_size)
    if python_ref.has_defined_fft(size):
        assert_same_bits(result, expected)
    else:  # thresholds pass the rounding of the spectrum on, slightly magnified
        assert relative_error(result, expected) < 4 * FFT[dtype]


def test_numbers_of_the_paper() -> None:
    x = noise(200, (65_536,))
    result = project_wgnc(x)
    similarity = cosine(x, result)
    assert float(similarity.mean()) == pytest.approx(0.98937, abs=1e-4)
    assert float(similarity.min()) >= 0.988
    distance = (result.double() - x.double()).norm(dim=1)
    assert float(distance.mean()) == pytest.approx(37.3, abs=0.1)
    assert float(distance.std()) == pytest.approx(0.46, abs=0.07)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "distribution", ["normal", "constant", "zero", "1/k", "spikes", "one outlier", "shifted"]
)
def test_projected_samples_have_the_norms(distribution: str, dtype: torch.dtype) -> None:
    result = project_wgnc(values(distribution, (2, 8192), dtype))
    spectrum = python_ref.to_wgnc_spectrum(result.double())
    blocks = spectrum.abs().unflatten(1, (-1, 16))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    assert float((blocks.sum(dim=2) - l1_target(16)).abs().max()) < tolerance
    assert float((blocks.square().sum(dim=2) - 16).abs().max()) < tolerance
    assert float(blocks.square().max()) <= LARGEST_POWER + 1e-3
    torch.testing.assert_close(
        result.double().norm(dim=1), torch.full((2,), math.sqrt(8192)).double(), rtol=1e-5, atol=0
    )
    # projecting twice is projecting once
    assert relative_error(project_wgnc(result), result) < tolerance


def test_largest_power_is_reached() -> None:
    """One coefficient far above 15 equal ones: the extreme case."""
    block = torch.ones(16, dtype=torch.complex128)
    block[3] = 1e6
    assert float(project_wgnc_blocks(block).abs().square().max()) == pytest.approx(LARGEST_POWER, abs=1e-4)


@pytest.mark.parametrize("dtype", COMPLEX)
def test_batch_equals_singles(dtype: torch.dtype) -> None:
    y = torch.stack([complex_values(name, (160,), dtype) for name in DISTRIBUTIONS])
    for sample, result in zip(y, check(y), strict=True):
        assert_same_bits(project_wgnc_blocks(sample), result)
    x = torch.view_as_real(y).flatten(1)
    for sample, result in zip(x, project_wgnc(x), strict=True):
        assert_same_bits(project_wgnc(sample), result)


@pytest.mark.parametrize("dtype", COMPLEX)
def test_strided_and_conjugated_spectra(dtype: torch.dtype) -> None:
    y = complex_values("normal", (64, 64), dtype)
    for strided in (y.t(), y[:, ::2], y[:1].expand(5, -1), y.conj(), y.t().conj()):
        assert_same_bits(
            project_wgnc_blocks(strided), python_ref.project_wgnc_blocks(strided.resolve_conj().contiguous())
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    x = values("normal", (2, 512)).to(dtype)
    assert_same_bits(project_wgnc(x), project_wgnc(x.float()).to(dtype))
