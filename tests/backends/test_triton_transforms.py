"""The Triton kernels of butterfly mixing and Walsh-Hadamard, interpreted, have the bits of the reference."""

from collections.abc import Callable

import pytest
import torch
from bits import assert_same_bits
from inputs import DISTRIBUTIONS, values
from torch import Tensor

from noisetilt_kernels import python_ref
from noisetilt_kernels.backends.triton import transforms
from noisetilt_kernels.backends.triton.launch import LAUNCH_TABLE
from noisetilt_kernels.backends.triton.transforms import butterfly, hadamard_transform

REAL = (torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow))


def check_butterfly(x: Tensor, tile: tuple[int, int], steps: int) -> None:
    """Compare bits with the reference, in both directions, on samples (B, C, H, W)."""
    before = x.clone()
    assert_same_bits(butterfly(x, tile, steps, False), python_ref.butterfly(x, tile, steps), f"{steps} steps")
    inverse = butterfly(x, tile, steps, True)
    assert_same_bits(inverse, python_ref.butterfly_inverse(x, tile, steps), f"{steps} steps back")
    assert_same_bits(x, before, "the input")


# ---- butterfly ----

# (C, H, W), tile
TILINGS = [
    ((2, 8, 8), (8, 8)),
    ((2, 16, 24), (8, 8)),
    ((3, 12, 20), (4, 10)),
    ((2, 15, 26), (15, 26)),
    ((3, 12, 16), (12, 16)),
    ((2, 12, 24), (4, 8)),
    ((2, 6, 10), (3, 2)),
    ((2, 6, 10), (1, 10)),
    ((4, 2, 1), (2, 1)),
    ((1, 14, 9), (14, 3)),
    ((1, 1, 512), (1, 64)),
    ((1, 1, 34), (1, 34)),
    ((1, 1, 2), (1, 2)),
    ((2, 22, 30), (8, 8)),  # from here on the tiles do not divide the plane
    ((2, 9, 13), (9, 12)),
]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(("shape", "tile"), TILINGS)
def test_butterfly(shape: tuple[int, int, int], tile: tuple[int, int], dtype: torch.dtype) -> None:
    x = values("everything", (2, *shape), dtype)
    for steps in (0, 1, 2, 5, 9):
        check_butterfly(x, tile, steps)


# Small blocks: tiles longer than a block, tiles that begin inside a block, and many launches.
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(
    ("block", "shape", "tile"),
    [
        (2, (1, 2, 6), (2, 3)),
        (4, (1, 4, 4), (4, 4)),
        (4, (2, 4, 6), (2, 6)),
        (8, (1, 1, 32), (1, 32)),
        (8, (1, 6, 9), (2, 3)),
        (16, (1, 8, 16), (8, 8)),
        (16, (1, 12, 16), (12, 8)),
        (32, (1, 12, 20), (12, 20)),
        (64, (1, 30, 52), (30, 52)),
        (64, (1, 16, 32), (16, 16)),
        (64, (1, 16, 24), (8, 8)),
    ],
)
def test_butterfly_in_small_blocks(
    block: int,
    shape: tuple[int, int, int],
    tile: tuple[int, int],
    dtype: torch.dtype,
    set_blocks: Callable[..., None],
) -> None:
    set_blocks("butterfly_kernel", values=block)
    x = values("everything", (1, *shape), dtype)
    for steps in (1, 3, 7):
        check_butterfly(x, tile, steps)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_butterfly_of_every_distribution(distribution: str, dtype: torch.dtype) -> None:
    check_butterfly(values(distribution, (2, 3, 12, 16), dtype), (4, 8), 5)
    check_butterfly(values(distribution, (2, 3, 12, 10), dtype), (12, 10), 4)


@pytest.mark.parametrize(("plane", "tile", "steps"), [((64, 64), (64, 64), 12), ((60, 104), (60, 104), 13)])
def test_butterfly_of_the_presets(plane: tuple[int, int], tile: tuple[int, int], steps: int) -> None:
    """Blocks have the sizes of the launch table."""
    check_butterfly(values("normal", (1, 2, *plane)), tile, steps)


@pytest.fixture
def launched(set_blocks: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Record (values of a sequence, scale) of every launch of the butterfly kernel, which is not run."""
    set_blocks("butterfly_kernel", values=4096)
    found: list[tuple[int, float]] = []

    def record(
        kernel: object, programs: int, scale: float, sequences: int, **constants: int
    ) -> Callable[..., None]:
        return lambda *tensors: found.append((constants["LENGTH"], scale))

    monkeypatch.setattr(transforms, "Launch", record)
    return found


def test_steps_are_shared_evenly_among_launches(launched: list[tuple[int, float]]) -> None:
    for shape, steps, lengths in (
        ((64, 64), 12, [4096]),
        ((256, 256), 16, [256, 256]),
        ((60, 104), 13, [16, 16, 32]),
        ((8, 8), 13, [16, 16, 32]),
        ((3, 2), 3, [2, 2, 2]),
        ((3, 3), 0, []),
    ):
        launched.clear()
        butterfly(torch.empty(1, 1, *shape), shape, steps, False)
        assert [length for length, _ in launched] == lengths


def test_only_the_last_launch_scales(launched: list[tuple[int, float]]) -> None:
    for scale in (0.3, 0.0, -0.0):
        launched.clear()
        hadamard_transform(torch.empty(1, 65_536), scale)
        assert str(launched) == f"[(256, 1.0), (256, {scale})]"


# ---- Walsh-Hadamard ----


def check_hadamard(x: Tensor) -> None:
    for scale in (1.0, x.shape[1] ** -0.5, 0.3):
        expected = python_ref.hadamard_transform(x, scale)
        assert_same_bits(hadamard_transform(x, scale), expected, f"{x.shape[1]} times {scale}")


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_hadamard_transform(distribution: str, dtype: torch.dtype) -> None:
    for size in (1, 2, 3, 8, 31, 64, 100):
        check_hadamard(values(distribution, (3, size), dtype))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("block", [4, 8])
def test_hadamard_transform_in_small_blocks(
    block: int, dtype: torch.dtype, set_blocks: Callable[..., None]
) -> None:
    set_blocks("butterfly_kernel", values=block)
    for size in (2, 11, 32):
        check_hadamard(values("everything", (3, size), dtype))


def test_hadamard_transform_of_rows_longer_than_a_block() -> None:
    """Blocks have the sizes of the launch table."""
    size = 4 * LAUNCH_TABLE["butterfly_kernel"]["values"]
    check_hadamard(values("normal", (1, size)))
