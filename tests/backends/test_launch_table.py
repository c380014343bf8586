"""The launch table of the Triton kernels is complete, and the tuner that makes it chooses well."""

import json
import math
from collections.abc import Callable
from types import ModuleType

import pytest

from bench.gpu import tune
from noisetilt_kernels.backends.triton import fourier, order_stats, tile_stats, transforms, wgnc, whitening
from noisetilt_kernels.backends.triton.launch import LAUNCH_TABLE_PATH

MODULES = (fourier, order_stats, tile_stats, transforms, wgnc, whitening)
TABLE: tune.Table = json.loads(LAUNCH_TABLE_PATH.read_text())


def kernels_of(module: ModuleType) -> set[str]:
    """Names of the launched functions. Kernels call the other Triton functions."""
    return {name for name, value in vars(module).items() if name.endswith("_kernel") and hasattr(value, "fn")}


def test_the_table_lists_exactly_the_kernels() -> None:
    assert set(TABLE) == set().union(*map(kernels_of, MODULES))


def test_sizes_are_powers_of_two() -> None:
    for kernel, sizes in TABLE.items():
        assert len(sizes) >= 2, kernel
        assert 1 <= sizes["warps"] <= 32, kernel
        assert all(type(size) is int and size > 0 and size & (size - 1) == 0 for size in sizes.values()), (
            kernel
        )


def test_every_kernel_has_a_grid() -> None:
    assert set(tune.GRIDS) == set(TABLE)
    for kernel, grid in tune.GRIDS.items():
        assert grid.keys() <= TABLE[kernel].keys(), kernel
        for sizes in grid.values():
            assert len(sizes) > 1, kernel
            assert all(size & (size - 1) == 0 for size in sizes), kernel


def test_the_file_is_formatted_as_the_tuner_writes_it() -> None:
    assert tune.PATH == LAUNCH_TABLE_PATH
    assert tune.render(TABLE) == LAUNCH_TABLE_PATH.read_text()


def test_candidates_are_the_grid_nearest_first() -> None:
    current = {"values": 64, "chunk": 8, "warps": 4}
    found = tune.candidates(current, {"values": (32, 64, 128), "warps": (4, 8)})
    assert {(sizes["values"], sizes["warps"]) for sizes in found} == {
        (32, 4),
        (128, 4),
        (32, 8),
        (64, 8),
        (128, 8),
    }
    assert all(sizes["chunk"] == 8 for sizes in found)
    assert [sizes["values"] != 64 and sizes["warps"] != 4 for sizes in found] == [False] * 3 + [True] * 2


# ---- the search, with made-up times ----

OLD: tune.Table = {"first": {"values": 64, "warps": 4}, "second": {"values": 16, "warps": 4}}
GRIDS = {
    "first": {"values": (32, 64, 128), "warps": (2, 4, 8)},
    "second": {"values": (16, 32), "warps": (4, 8)},
}


class Gpu:
    """Stand-in for a GPU: times are a function of a kernel's sizes."""

    def __init__(self, seconds: Callable[[str, tune.Sizes], float]) -> None:
        self.seconds = seconds
        self.calls: list[tuple[str, tune.Sizes]] = []

    def __call__(self, kernel: str, sizes: tune.Sizes) -> float:
        self.calls.append((kernel, sizes))
        return self.seconds(kernel, sizes)


def away_from(values: int, warps: int) -> Callable[[str, tune.Sizes], float]:
    """Return times that are shortest at these sizes, and 10% longer for each step away."""
    return lambda kernel, sizes: (
        1 + 0.1 * (abs(math.log2(sizes["values"] / values)) + abs(math.log2(sizes["warps"] / warps)))
    )


def test_the_best_is_found() -> None:
    gpu = Gpu(away_from(128, 8))
    better = tune.descend(OLD, GRIDS, gpu)
    assert better == {"first": {"values": 128, "warps": 8}, "second": {"values": 32, "warps": 8}}
    assert OLD["first"] == {"values": 64, "warps": 4}
    # the last call of each kernel used its chosen sizes
    assert dict(gpu.calls) == better


@pytest.mark.parametrize(("gain", "replaced"), [(0.01, False), (0.019, False), (0.03, True)])
def test_small_gains_are_ignored(gain: float, replaced: bool) -> None:
    better = tune.descend(OLD, GRIDS, Gpu(lambda kernel, sizes: 1 - gain * (sizes["warps"] == 8)))
    assert (better == OLD) is not replaced


def test_a_single_fast_measurement_is_ignored() -> None:
    """A candidate seems faster in one measurement only."""
    lucky = iter([0.5])

    def seconds(kernel: str, sizes: tune.Sizes) -> float:
        return next(lucky, 1.0) if sizes == {"values": 128, "warps": 2} else 1.0

    assert tune.descend(OLD, GRIDS, Gpu(seconds)) == OLD


def test_failing_sizes_are_not_chosen() -> None:
    def seconds(kernel: str, sizes: tune.Sizes) -> float:
        return math.inf if sizes["values"] > 64 else 1.0 / sizes["warps"]

    better = tune.descend(OLD, GRIDS, Gpu(seconds))
    assert better["first"] == {"values": 64, "warps": 8}


def test_the_time_limit_is_kept() -> None:
    gpu = Gpu(away_from(32, 4))
    assert tune.descend(OLD, GRIDS, gpu, in_time=lambda: False) == OLD
    assert gpu.calls == []
    in_time = iter([True, True, True, *[False] * 9])  # the first kernel and two of its candidates
    better = tune.descend(OLD, GRIDS, gpu, in_time=lambda: next(in_time))
    assert better == {**OLD, "first": {"values": 32, "warps": 4}}


def test_the_file_is_read_as_it_was_written() -> None:
    assert json.loads(tune.render(OLD)) == OLD
    assert tune.render(OLD).count("\n") == len(OLD) + 2
