"""Compact Fourier transform: definition, bits, accuracy, orthogonality, and the factors of its FFT."""

import math

import numpy as np
import pytest
import torch
from bits import assert_same_bits
from inputs import DISTRIBUTIONS, noise, values
from tolerances import FFT, ORTHOGONAL, relative_error
from torch import Tensor

from noisetilt_kernels import python_ref

compact_fourier = torch.ops.noisetilt.compact_fourier

REAL = (torch.float32, torch.float64)

EVEN = [2, 4, 6, 10, 16, 30, 34, 66, 128, 510, 1000, 1024, 4096]


@pytest.mark.parametrize("size", [2, 4, 6, 10, 16, 30])
def test_compact_fourier_definition(size: int) -> None:
    """Compare with sums of cosines and sines, in float64."""
    x = values("normal", (3, size), torch.float64).numpy()
    n, half = np.arange(size), size // 2
    angle = 2 * np.pi * np.outer(n, np.arange(half + 1)) / size
    re, im = x @ np.cos(angle) / math.sqrt(size), -x @ np.sin(angle) / math.sqrt(size)
    z = np.concatenate(
        [re[:, :1], re[:, half:], math.sqrt(2) * re[:, 1:half], math.sqrt(2) * im[:, 1:half]], axis=1
    )
    assert relative_error(compact_fourier(torch.from_numpy(x)), torch.from_numpy(z)) < 1e-14
    assert relative_error(compact_fourier(torch.from_numpy(z), inverse=True), torch.from_numpy(x)) < 1e-14


def check_compact_fourier(x: Tensor) -> None:
    """Compare with the reference, in both directions: bits where the FFT is defined, else up to rounding."""
    for inverse, by_reference in (
        (False, python_ref.compact_fourier),
        (True, python_ref.compact_fourier_inverse),
    ):
        result, expected = compact_fourier(x, inverse), by_reference(x)
        if python_ref.has_defined_fft(x.shape[1]):
            assert_same_bits(result, expected, f"inverse {inverse}")
        else:
            assert relative_error(result, expected) < FFT[x.dtype]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("size", [2**k for k in range(1, 18)])
def test_compact_fourier_of_powers_of_two_has_the_bits_of_the_reference(
    size: int, dtype: torch.dtype
) -> None:
    for distribution in DISTRIBUTIONS if size <= 1024 else ("normal", "1/k", "everything"):
        check_compact_fourier(values(distribution, (3, size), dtype))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(
    "distribution", ["normal", "constant", "sorted", "1/k", "spikes", "huge", "tiny", "shifted"]
)
def test_compact_fourier_is_the_reference_to_rounding(distribution: str, dtype: torch.dtype) -> None:
    for size in EVEN:
        x = values(distribution, (2, size), dtype)
        if x.any():
            check_compact_fourier(x)


@pytest.mark.parametrize("size", [2**k for k in range(10, 19)])
def test_the_defined_fft_is_as_accurate_as_torchs(size: int) -> None:
    """The root mean square errors of 2^21 float32 values, against float64."""

    def by_torch(x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, norm="ortho")
        interior = math.sqrt(2.0) * spectrum[:, 1:-1]
        return torch.cat([spectrum[:, :1].real, spectrum[:, -1:].real, interior.real, interior.imag], dim=1)

    x = noise(2**21 // size, (size,))
    exact = by_torch(x.double())
    error = relative_error(python_ref.compact_fourier(x), exact)
    assert error < 1.05 * relative_error(by_torch(x), exact)
    z = x[:, 0::2] + 1j * x[:, 1::2]
    parts = python_ref.complex_fft(z.real, z.imag, python_ref.twiddle_factors(size, x.dtype))
    exact = torch.fft.fft(z.to(torch.complex128))
    assert relative_error(torch.complex(*parts), exact) < relative_error(torch.fft.fft(z), exact)


@pytest.mark.parametrize("size", [2, 4, 6, 32, 34, 1000, 65_536, 2**20])
def test_the_factors_of_the_fft_are_rounded_once(size: int) -> None:
    k = np.arange(size // 4 + 1, dtype=np.longdouble)
    pi = np.longdouble("3.14159265358979323846264338327950288")
    exact = np.stack([np.cos(2 * pi * k / size), -np.sin(2 * pi * k / size)])
    for dtype in REAL:
        factors = python_ref.twiddle_factors(size, dtype)[:, -len(k) :].numpy()
        error = np.abs(factors.astype(np.longdouble) - exact)
        assert (error <= np.spacing(np.abs(factors)) / 2 + 2e-16).all()


def test_factors_that_are_made_in_inference_mode_serve_gradients() -> None:
    python_ref.twiddle_factors.cache_clear()
    with torch.inference_mode():
        python_ref.compact_fourier(noise(1, (64,)))
    x = noise(1, (64,)).requires_grad_()
    python_ref.compact_fourier(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x)  # the transform is orthogonal


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("size", [*EVEN, 65_536])
def test_compact_fourier_round_trip(size: int, dtype: torch.dtype) -> None:
    x = noise(3, (size,), dtype)
    z = compact_fourier(x)
    norms = z.double().norm(dim=1) / x.double().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=ORTHOGONAL[dtype])
    assert relative_error(compact_fourier(z, inverse=True), x) < ORTHOGONAL[dtype]
    assert relative_error(compact_fourier(compact_fourier(x, inverse=True)), x) < ORTHOGONAL[dtype]


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("size", [2, 6, 8, 34, 64])
def test_compact_fourier_is_orthogonal(size: int, inverse: bool) -> None:
    h = compact_fourier(torch.eye(size, dtype=torch.float64), inverse)
    torch.testing.assert_close(h @ h.t(), torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(
        h.t(), compact_fourier(torch.eye(size, dtype=torch.float64), not inverse), rtol=0, atol=1e-14
    )
