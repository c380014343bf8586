"""Compact Fourier, butterfly mixing and Walsh-Hadamard: definitions, bits, orthogonality."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from bits import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import DISTRIBUTIONS, noise, values
from tolerances import FFT, ORTHOGONAL, relative_error
from torch import Tensor

from noisetilt_kernels import python_ref
from noisetilt_kernels.config import MOST_STEPS

compact_fourier = torch.ops.noisetilt.compact_fourier
butterfly = torch.ops.noisetilt.butterfly
hadamard_transform = torch.ops.noisetilt.hadamard_transform

REAL = (torch.float32, torch.float64)


# ---- butterfly ----

# (C, H, W), tile
TILINGS = [
    ((2, 8, 8), (8, 8)),
    ((2, 8, 16), (8, 8)),
    ((3, 12, 20), (4, 10)),
    ((1, 60, 104), (60, 104)),
    ((2, 60, 104), (4, 8)),
    ((2, 6, 10), (3, 2)),
    ((2, 6, 10), (1, 10)),
    ((4, 2, 1), (2, 1)),
    ((1, 14, 9), (14, 3)),
    ((1, 1, 4096), (1, 64)),
    ((1, 1, 34), (1, 34)),
    ((1, 1, 2), (1, 2)),
]


def check_butterfly(x: Tensor, tile: tuple[int, int], steps: int) -> None:
    """Compare bits with the reference, in both directions, on samples (B, C, H, W)."""
    assert_same_bits(butterfly(x, tile, steps), python_ref.butterfly(x, tile, steps), f"{steps} steps")
    inverse = butterfly(x, tile, steps, inverse=True)
    assert_same_bits(inverse, python_ref.butterfly_inverse(x, tile, steps), f"{steps} steps back")


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("shape", "tile"), TILINGS)
def test_butterfly_bits(
    shape: tuple[int, int, int], tile: tuple[int, int], distribution: str, dtype: torch.dtype
) -> None:
    x = values(distribution, (2, *shape), dtype)
    for steps in (0, 1, 2, 5, 13):
        check_butterfly(x, tile, steps)


@settings(max_examples=150, deadline=None)
@given(
    channels=st.integers(1, 4),
    rows=st.integers(1, 3),
    columns=st.integers(1, 5),
    tile=st.tuples(st.integers(1, 20), st.integers(1, 40)).filter(lambda tile: tile[0] * tile[1] % 2 == 0),
    steps=st.integers(0, 14),
    distribution=st.sampled_from(list(DISTRIBUTIONS)),
    dtype=st.sampled_from(REAL),
)
def test_hypothesis_finds_no_difference_of_butterflies(
    channels: int,
    rows: int,
    columns: int,
    tile: tuple[int, int],
    steps: int,
    distribution: str,
    dtype: torch.dtype,
) -> None:
    check_butterfly(
        values(distribution, (1, channels, rows * tile[0], columns * tile[1]), dtype), tile, steps
    )


@pytest.mark.parametrize("size", [2, 6, 8, 10, 34])
def test_butterfly_definition(size: int) -> None:
    """Apply the formulas of the definition, in float64."""
    x = values("normal", (3, size), torch.float64)
    y = torch.empty_like(x)
    for i in range(size // 2):
        y[:, i] = (x[:, 2 * i] + x[:, 2 * i + 1]) / math.sqrt(2)
        y[:, size // 2 + i] = (x[:, 2 * i] - x[:, 2 * i + 1]) / math.sqrt(2)
    torch.testing.assert_close(butterfly(x, (1, size), 1), y, rtol=1e-15, atol=1e-15)


def test_butterfly_flattens_a_tile_by_rows() -> None:
    x = values("normal", (1, 2, 6, 10))
    tile = x[:, 1, 2:4, 5:10].reshape(1, 10)
    assert_same_bits(butterfly(x, (2, 5), 3)[:, 1, 2:4, 5:10].reshape(1, 10), butterfly(tile, (1, 10), 3))


EVEN_SIZES = [*range(2, 66, 2), 70, 98, 130, 256, 510, 514, 1022]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("size", EVEN_SIZES)
def test_butterfly_is_orthogonal_for_every_even_size(size: int, dtype: torch.dtype) -> None:
    """H H^T = I after every number of steps, and the inverse is the transpose."""
    identity = torch.eye(size, dtype=dtype)
    steps = (size - 1).bit_length()
    for n in range(1, steps + 1):
        h = butterfly(identity, (1, size), n).t()  # rows of the identity become columns of H
        tolerance = 4 * torch.finfo(dtype).eps * n
        torch.testing.assert_close(h @ h.t(), identity, rtol=0, atol=tolerance)
        torch.testing.assert_close(butterfly(identity, (1, size), n, inverse=True), h, rtol=0, atol=tolerance)


@pytest.mark.parametrize("log_size", range(1, 11))
def test_butterfly_steps_are_the_hadamard_matrix(log_size: int) -> None:
    size = 2**log_size
    h = butterfly(torch.eye(size, dtype=torch.float64), (1, size), log_size)
    expected = torch.from_numpy(scipy.linalg.hadamard(size)).double() / math.sqrt(size)
    torch.testing.assert_close(h, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(
    ("shape", "tile", "steps"), [((16, 64, 64), (64, 64), 12), ((4, 60, 104), (60, 104), 13)]
)
def test_butterfly_round_trip(
    shape: tuple[int, int, int], tile: tuple[int, int], steps: int, dtype: torch.dtype
) -> None:
    x = noise(2, shape, dtype)
    y = butterfly(x, tile, steps)
    assert float(y.double().norm()) == pytest.approx(float(x.double().norm()), rel=ORTHOGONAL[dtype])
    assert relative_error(butterfly(y, tile, steps, inverse=True), x) < ORTHOGONAL[dtype]


def test_most_steps() -> None:
    check_butterfly(noise(2, (2, 6, 10)), (6, 10), MOST_STEPS)
    check_butterfly(noise(2, (2, 8, 8)), (8, 8), MOST_STEPS)


@pytest.mark.parametrize("function", [butterfly, python_ref.butterfly])
def test_a_period_of_steps_gives_other_bits(function: Callable[..., Tensor]) -> None:
    """12 steps on 64 values are the identity, with rounding. So the number of steps cannot be reduced."""
    x = noise(1, (1, 8, 8))
    y = function(x, (8, 8), 12)
    torch.testing.assert_close(y, x)
    assert not torch.equal(y, x)


# ---- Walsh-Hadamard ----


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_hadamard_bits(distribution: str, dtype: torch.dtype) -> None:
    for size in (1, 2, 3, 4, 8, 12, 31, 32, 64, 100, 129, 1024):
        for scale in (1.0, size**-0.5, 0.3):
            x = values(distribution, (3, size), dtype)
            assert_same_bits(
                hadamard_transform(x, scale), python_ref.hadamard_transform(x, scale), f"{size}, {scale}"
            )


@pytest.mark.parametrize("size", [1, 2, 4, 16, 128, 1024])
def test_hadamard_is_scipys_and_orthogonal(size: int) -> None:
    h = hadamard_transform(torch.eye(size, dtype=torch.float64))
    assert_same_bits(h, torch.from_numpy(scipy.linalg.hadamard(size)).double())
    assert_same_bits(h @ h.t(), size * torch.eye(size, dtype=torch.float64))


# ---- compact Fourier ----

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


# ---- both ----

OPS = {
    "compact_fourier": lambda x: compact_fourier(x),
    "compact_fourier inverse": lambda x: compact_fourier(x, inverse=True),
    "butterfly": lambda x: butterfly(x, (1, 24), 4),
    "butterfly inverse": lambda x: butterfly(x, (1, 24), 4, inverse=True),
    "hadamard_transform": lambda x: hadamard_transform(x, 0.5),
}


@pytest.mark.parametrize("op", OPS)
def test_batch_equals_singles(op: str) -> None:
    x = torch.stack([values(name, 240) for name in DISTRIBUTIONS])
    for sample, result in zip(x, OPS[op](x), strict=True):
        assert_same_bits(OPS[op](sample), result)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", OPS)
def test_half_precision_is_computed_in_float32_and_rounded_once(op: str, dtype: torch.dtype) -> None:
    x = values("normal", (2, 240)).to(dtype)
    assert_same_bits(OPS[op](x), OPS[op](x.float()).to(dtype))
