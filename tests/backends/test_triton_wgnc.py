"""The Triton kernel of WGNC, interpreted, has the bits of the reference."""

import math
from collections.abc import Callable

import pytest
import torch
from bits import assert_same_bits
from inputs import DISTRIBUTIONS, values
from torch import Tensor

from noisetilt_kernels import python_ref
from noisetilt_kernels.backends.triton.wgnc import project_wgnc, project_wgnc_blocks

REAL = (torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow))
COMPLEX = (torch.complex64, pytest.param(torch.complex128, marks=pytest.mark.slow))
BLOCK_SIZES = (2, 3, 4, 5, 8, 15, 16, 17, 32, 33, 64, 100)


def complex_values(
    name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.complex64, seed: int = 0
) -> Tensor:
    """Return complex numbers with real and imaginary parts of the named distribution."""
    return torch.view_as_complex(values(name, (*shape, 2), dtype.to_real(), seed))


def check(y: Tensor, block_size: int = 16, context: str = "") -> None:
    """Compare bits with the reference on spectra (B, n)."""
    before = y.clone()
    expected = python_ref.project_wgnc_blocks(y, block_size)
    assert_same_bits(project_wgnc_blocks(y, block_size), expected, context)
    assert_same_bits(y, before, "the input")


# ---- blocks ----


@pytest.mark.parametrize("dtype", COMPLEX)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_every_distribution(block_size: int, dtype: torch.dtype) -> None:
    y = torch.stack(
        [complex_values(name, (5 * block_size,), dtype, seed=block_size) for name in DISTRIBUTIONS]
    )
    check(y, block_size, ", ".join(DISTRIBUTIONS))


@pytest.mark.parametrize("dtype", COMPLEX)
@pytest.mark.parametrize("block_size", [2, 5, 16, 17])
@pytest.mark.parametrize("blocks", [1, 4])
def test_small_programs(
    blocks: int, block_size: int, dtype: torch.dtype, set_blocks: Callable[..., None]
) -> None:
    set_blocks("project_wgnc_blocks_kernel", blocks=blocks, coefficients=32 * blocks)
    for num_blocks in (1, 5):
        check(
            complex_values("everything", (2, num_blocks * block_size), dtype),
            block_size,
            f"{num_blocks} blocks",
        )


@pytest.mark.parametrize("scale", [1.0, 2.0**-60, 2.0**60])
@pytest.mark.parametrize("dtype", COMPLEX)
def test_ties(dtype: torch.dtype, scale: float) -> None:
    """t = 12.57: with 13 ties at the maximum no threshold exists."""
    # magnitude exactly 1 in any dtype
    units = torch.tensor([1, -1, 1j, -1j], dtype=torch.complex128).repeat(4)
    places = torch.arange(16)
    one_pixel = 5 * (places == 5) * units
    blocks = {
        "zero": 0 * units,
        "negative zero": -0.0 * units,
        "one pixel": one_pixel,
        "nearly tied": units * (1 + 1e-15 * places),
        "nearly zero": 1e-15 * units * places,
        "tied but one": torch.where(places == 7, 0.5, 1) * units,
    }
    for k in (1, 2, 11, 12, 13, 14, 15, 16):
        blocks[f"{k} ties above zeros"] = torch.where(places >= 16 - k, units, 0)
        blocks[f"{k} ties above others"] = torch.where(places < k, 1, 0.25) * units
        blocks[f"{k} near ties"] = torch.where(places < k, 1 + 1e-15 * places, 0) * units
    y = (torch.stack(list(blocks.values())) * scale).to(dtype)
    check(y, 16, "in this order: " + ", ".join(blocks))
    noise = complex_values("normal", (3 * len(blocks), 16), dtype)
    noise[1::3] = y
    check(noise.view(1, -1), 16, "among noise")


@pytest.mark.parametrize("dtype", COMPLEX)
@pytest.mark.parametrize("block_size", [2, 3, 8, 15, 17, 33])
def test_ties_in_blocks_of_other_sizes(block_size: int, dtype: torch.dtype) -> None:
    fewest = math.floor(math.pi * block_size / 4) + 1
    units = torch.tensor([1, -1, 1j, -1j], dtype=dtype).repeat(9)[:block_size]
    ties = torch.arange(max(fewest - 1, 1), block_size + 1)[:, None]
    tied = torch.arange(block_size) >= block_size - ties
    for low in (0.0, 0.5):
        check(torch.where(tied, units, low * units), block_size)


@pytest.mark.parametrize("dtype", COMPLEX)
def test_few_values(dtype: torch.dtype) -> None:
    """Every number of ties, and thresholds at a magnitude."""
    for seed in range(3):
        y = complex_values("normal", (1, 128 * 16), dtype, seed)
        for digits in (0, 1):
            check(torch.view_as_complex(torch.view_as_real(y).round(decimals=digits)), 16, f"{digits} digits")


def test_a_magnitude_at_the_threshold() -> None:
    """The smallest of 5 magnitudes equals the threshold of the 4 largest. Then that threshold is taken."""
    t = math.pi * 5 / 4
    blocks = []
    for others in (
        1 - 0.3 * torch.rand(300, 3, generator=torch.Generator().manual_seed(0)).double()
    ).tolist():
        d1 = d2 = 0.0
        for w in (1.0, *sorted(others, reverse=True)):
            d1, d2 = d1 + (w - 1), d2 + (w - 1) * (w - 1)
        threshold = (d1 - math.sqrt(t * (4 * d2 - d1 * d1) / (4 - t))) / 4
        if -1 < threshold < -0.5:  # then 1 + threshold is not rounded
            blocks.append([1.0, *others, 1 + threshold])
    assert len(blocks) > 50
    check(torch.tensor(blocks, dtype=torch.complex128), 5)


@pytest.mark.parametrize("dtype", COMPLEX)
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_a_block_that_is_not_finite_becomes_nan(special: float, dtype: torch.dtype) -> None:
    for part in range(2):
        y = complex_values("normal", (2, 160), dtype)
        torch.view_as_real(y)[1, 37, part] = special
        check(y)
        assert bool(torch.view_as_real(project_wgnc_blocks(y, 16))[1, 32:48].isnan().all())


@pytest.mark.parametrize("block_size", [300, 1025])
def test_large_blocks(block_size: int) -> None:
    check(complex_values("normal", (1, block_size)), block_size)


# ---- samples ----


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("block_size", [2, 3, 16, 17])
@pytest.mark.parametrize("num_blocks", [1, 2, 7])
def test_samples(num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
    """The sizes are powers of two, which have the defined FFT, and others, where both take torch's."""
    x = torch.stack([values(name, 2 * num_blocks * block_size, dtype) for name in DISTRIBUTIONS])
    before = x.clone()
    expected = python_ref.project_wgnc(x, block_size)
    # With torch's FFT the reference multiplies y_0 by complex numbers, which may change the sign of zeros.
    zero = -0.0 if python_ref.has_defined_fft(x.shape[1]) else 0.0  # adding -0 changes nothing
    assert_same_bits(project_wgnc(x, block_size) + zero, expected + zero)
    assert_same_bits(x, before, "the input")


def test_the_ends_of_a_spectrum_stay_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every FFT ignores the imaginary parts of X_0 and X_{N/2}."""
    monkeypatch.setattr(torch.fft, "irfft", lambda spectrum, **how: spectrum)
    spectrum = project_wgnc(values("normal", (3, 192)), 16)
    assert not spectrum[:, [0, -1]].imag.any()


@pytest.mark.parametrize("dtype", REAL)
def test_samples_in_small_programs(dtype: torch.dtype, set_blocks: Callable[..., None]) -> None:
    """Programs begin and end inside samples, or hold several samples."""
    for blocks in (1, 2, 4):
        set_blocks("project_wgnc_blocks_kernel", blocks=blocks)
        for block_size, num_blocks in ((2, 3), (2, 8), (4, 5), (16, 1), (16, 3), (16, 4)):
            x = values("normal", (3, 2 * num_blocks * block_size), dtype)
            assert_same_bits(
                project_wgnc(x, block_size), python_ref.project_wgnc(x, block_size), f"{num_blocks}"
            )
