"""Butterfly mixing and Walsh-Hadamard: definitions, bits, orthogonality. All transforms: batches, dtypes."""

import math
from collections.abc import Callable

import pytest
import scipy.linalg
import torch
from bits import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import DISTRIBUTIONS, noise, values
from tolerances import ORTHOGONAL, relative_error
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
    ((2, 22, 30), (8, 8)),  # from here on the tiles do not divide the plane
    ((2, 21, 16), (4, 16)),
    ((3, 9, 11), (4, 4)),
    ((3, 9, 11), (9, 10)),
    ((2, 7, 1), (6, 1)),
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
    rest=st.tuples(st.sampled_from([0, 0, 1, 5]), st.sampled_from([0, 0, 1, 7])),
    tile=st.tuples(st.integers(1, 20), st.integers(1, 40)).filter(lambda tile: tile[0] * tile[1] % 2 == 0),
    steps=st.integers(0, 14),
    distribution=st.sampled_from(list(DISTRIBUTIONS)),
    dtype=st.sampled_from(REAL),
)
def test_hypothesis_finds_no_difference_of_butterflies(
    channels: int,
    rows: int,
    columns: int,
    rest: tuple[int, int],
    tile: tuple[int, int],
    steps: int,
    distribution: str,
    dtype: torch.dtype,
) -> None:
    shape = (1, channels, rows * tile[0] + rest[0], columns * tile[1] + rest[1])
    check_butterfly(values(distribution, shape, dtype), tile, steps)


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


# ---- all transforms ----

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
