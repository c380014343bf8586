"""The Triton kernels of the compact Fourier transform, interpreted, have the bits of the reference."""

from collections.abc import Callable

import pytest
import torch
from bits import assert_same_bits
from inputs import DISTRIBUTIONS, values
from tolerances import FFT, relative_error
from torch import Tensor

from noisetilt_kernels import python_ref
from noisetilt_kernels.backends.triton import fourier
from noisetilt_kernels.backends.triton.fourier import compact_fourier

REAL = (torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow))


def check(x: Tensor, context: str = "") -> None:
    """Compare bits in both directions. With torch's FFT the reference multiplies by complex numbers: there,
    zeros may have another sign.
    """
    before = x.clone()
    zero = -0.0 if python_ref.has_defined_fft(x.shape[1]) else 0.0  # adding -0 changes nothing
    for inverse, reference in (
        (False, python_ref.compact_fourier),
        (True, python_ref.compact_fourier_inverse),
    ):
        assert_same_bits(compact_fourier(x, inverse) + zero, reference(x) + zero, f"{context}, {inverse=}")
    assert_same_bits(x, before, "the input")


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("log_size", range(1, 14))
def test_powers_of_two(log_size: int, dtype: torch.dtype) -> None:
    check(values("normal", (2, 2**log_size), dtype))


@pytest.mark.parametrize("dtype", REAL)
def test_powers_of_two_of_every_distribution(dtype: torch.dtype) -> None:
    for name in DISTRIBUTIONS:
        for size in (16, 32):
            check(values(name, (2, size), dtype), f"{name}, {size}")


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("block", [4, 16, 64])
def test_powers_of_two_in_small_blocks(
    block: int, dtype: torch.dtype, set_blocks: Callable[..., None]
) -> None:
    """Programs hold one sequence, several sequences of one transform, or several transforms."""
    set_blocks("fft_kernel", values=block)
    set_blocks("compact_spectrum_kernel", coefficients=4)
    for size in (8, 64, 128, 2048, 4096):
        check(values("normal", (2, size), dtype), f"{size}")


def test_stages_are_shared_evenly_among_launches() -> None:
    """A flux latent takes two launches of four stages each; the last of them has radix 2."""
    for size, lengths in (
        (2, [1]),
        (512, [256]),
        (1024, [512, 32]),
        (65_536, [2**15, 2**7]),
        (2**18, [2**17, 2**11, 2**5]),
    ):
        launches = fourier._fft_plan(1, size, torch.float32, None, False)
        assert [launch._constants["LENGTH"] for launch in launches] == lengths
        after = [launch._constants["AFTER"] for launch in launches]
        assert after == [*lengths[1:], 1]


def test_numbers_of_factors() -> None:
    for log_size in range(1, 20):
        size = 2**log_size
        assert fourier.num_factors(size) == python_ref.twiddle_factors(size, torch.float32).shape[1]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("size", [6, 30, 510, 2100])
def test_other_sizes(size: int, dtype: torch.dtype) -> None:
    for name in ("normal", "1/k", "zero", "huge", "denormal", "shifted"):
        check(values(name, (3, size), dtype), name)


@pytest.mark.parametrize("dtype", REAL)
def test_other_sizes_in_small_blocks(dtype: torch.dtype, set_blocks: Callable[..., None]) -> None:
    set_blocks("compact_fourier_kernel", coefficients=4)
    for size in (10, 18, 54):
        check(values("normal", (3, size), dtype), f"{size}")


def test_every_place_of_a_spectrum_is_written() -> None:
    """This includes the imaginary parts of X_0 and X_{N/2}, which not every FFT ignores."""
    z = values("normal", (3, 20))
    spectrum = torch.full((3, 11, 2), torch.nan)
    fourier._rearrangement(3, 20, z.dtype, True)(spectrum, z)
    assert bool(spectrum.isfinite().all())
    assert not spectrum[:, [0, -1], 1].any()


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("size", [1000, 1024])
def test_round_trip(size: int, dtype: torch.dtype) -> None:
    x = values("1/k", (2, size), dtype)
    assert relative_error(compact_fourier(compact_fourier(x, False), True), x) < FFT[dtype]
