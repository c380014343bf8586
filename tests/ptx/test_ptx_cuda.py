"""The PTX that nvcc makes of the CUDA kernels, executed: the bits of the reference, and planted faults.

The tests are those of the emulation (tests/cuda_emulation/test_cuda_kernels.py), with other kernels.
"""

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from cuda_emulation import test_cuda_kernels as emulation
from cuda_emulation.test_cuda_kernels import (  # noqa: F401
    teams_are_no_clusters,
    test_2os,
    test_2os_of_longer_samples,
    test_2os_of_values_at_entries_of_the_table,
    test_a_sample_that_is_not_finite_is_nan_throughout,
    test_a_tile_at_the_limit_of_constant,
    test_butterfly,
    test_compact_fourier,
    test_compact_fourier_by_other_ffts,
    test_compact_fourier_of_unusual_values,
    test_hadamard_transform,
    test_hadamard_transform_of_16_bits,
    test_one_latent_of_full_size,
    test_project,
    test_project_mixing_domains,
    test_project_mixing_domains_with_more_tiles_than_a_block_ranks_alone,
    test_rank_ranges_are_complete_and_empty_for_unsorted_tables,
    test_rank_ranges_report_the_faults_of_a_table,
    test_slices_that_do_not_fit_into_shared_memory,
    test_the_stages_of_whiten_share_memory,
    test_tile_statistics_in_long_chunks,
    test_tile_statistics_of_many_tiles,
    test_wgnc,
    test_wgnc_between_ffts,
    test_wgnc_blocks,
)
from ptx.build import NVCC, load
from ptx.plants import replaced

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    return load("kernels_sm_90")


@pytest.fixture
def edited(kernels: ModuleType) -> Iterator[Callable[[str, str, int], None]]:
    """Return a function that replaces one match of a pattern in the PTX of the projection kernel."""

    def edit(pattern: str, replacement: str, number: int | None = None) -> None:
        """number: of the match, or None for all matches."""
        texts = []

        def new(ptx: str) -> str:
            if "project_kernel" not in ptx:
                return ptx
            texts.append(replaced(ptx, pattern, replacement, number))
            assert texts[-1] != ptx, f"the PTX has no {pattern}"
            return texts[-1]

        kernels.edit_ptx(new)
        assert len(texts) == 1

    yield edit
    kernels.edit_ptx(lambda ptx: ptx)


@pytest.fixture
def stale(kernels: ModuleType) -> Iterator[None]:
    """Stores become visible, and loads current, only as late as the memory model allows."""
    kernels.machine.stale = True
    yield
    kernels.machine.stale = False


SEVERAL_BLOCKS = {"num_sms": 16, "threads_per_block": 128}


def check_mixing(kernels: ModuleType, seed: int = 1) -> None:
    """Project mixing domains with several blocks on one sample."""
    shape, mixing = (4, 16, 16), (((16, 16), 4),)
    kernels.set_device(**SEVERAL_BLOCKS, seed=seed)
    x = emulation.values("1/k", (1, *shape), torch.float32)
    emulation.check_mixing(kernels.project_mixing_domains, x, x, mixing)


def check_is_found(kernels: ModuleType) -> str:
    """Return how a planted fault shows itself: a difference, or a fault of the program."""
    with pytest.raises((AssertionError, kernels.Fault)) as error:
        check_mixing(kernels)
    return str(error.value)


# ---- the memory model ----


@pytest.mark.parametrize("seed", range(4))
def test_late_visibility_changes_no_bit(kernels: ModuleType, stale: None, seed: int) -> None:
    check_mixing(kernels, seed)


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOISETILT_CUDA_CLUSTERS", "1")


def test_late_visibility_changes_no_bit_of_clusters(
    kernels: ModuleType, stale: None, clusters: None
) -> None:
    check_mixing(kernels)


def test_late_visibility_changes_no_bit_of_2os(kernels: ModuleType, stale: None) -> None:
    for distribution in ("normal", "one outlier"):
        test_2os(kernels, distribution, "many blocks", torch.float32)


@pytest.mark.parametrize(
    ("order", "relaxed"),
    [(r"atom\.add\.release\.gpu", "atom.add.relaxed.gpu"), (r"ld\.acquire\.gpu", "ld.relaxed.gpu")],
)
def test_a_barrier_without_its_order_is_found(
    kernels: ModuleType, stale: None, edited: Callable[..., None], order: str, relaxed: str
) -> None:
    edited(order, relaxed)
    check_is_found(kernels)


def test_a_cluster_barrier_without_its_order_is_found(
    kernels: ModuleType, stale: None, clusters: None, edited: Callable[..., None]
) -> None:
    edited(r"barrier\.cluster\.arrive\.release", "barrier.cluster.arrive.relaxed")
    check_is_found(kernels)


def test_without_late_visibility_the_order_makes_no_difference(
    kernels: ModuleType, edited: Callable[..., None]
) -> None:
    edited(r"atom\.add\.release\.gpu", "atom.add.relaxed.gpu")
    check_mixing(kernels)


# ---- planted faults ----


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"add\.rn\.f32", "sub.rn.f32"),
        (r"setp\.lt\.s32", "setp.le.s32"),
        (r"@%p\d+ bra", "bra"),
        (r"(ld\.global\.v4\.u32\s+\{)(%r\d+), (%r\d+)", r"\1\3, \2"),
        (r"shfl\.sync\.up", "shfl.sync.bfly"),
        (r"bar\.sync\s+0;", ""),
        (r"atom\.global\.add\.u32", "atom.global.max.u32"),
    ],
)
def test_planted_faults_are_found(
    kernels: ModuleType, edited: Callable[..., None], pattern: str, replacement: str
) -> None:
    edited(pattern, replacement)
    check_is_found(kernels)


@pytest.mark.parametrize(
    ("pattern", "opcode"), [(r"add\.rn\.f32", "add.rz.f32"), (r"add\.rn\.f32", "add.f32")]
)
def test_unknown_opcodes_are_named(
    kernels: ModuleType, edited: Callable[..., None], pattern: str, opcode: str
) -> None:
    edited(pattern, opcode, 0)
    assert f"the opcode {opcode} is unknown" in check_is_found(kernels)


# ---- the other architecture ----


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_code_for_sm_80(dtype: torch.dtype) -> None:
    kernels = load("kernels_sm_80")
    for distribution in ("normal", "everything"):
        test_2os(kernels, distribution, "many blocks", dtype)
        test_2os_of_longer_samples(kernels, 3000, 3, distribution, dtype)
        test_wgnc_blocks(kernels, distribution, 16, dtype)
        test_wgnc_blocks(kernels, distribution, 17, dtype)
    test_project(kernels, (4, 16, 16), "many blocks", dtype)
    test_project_mixing_domains(kernels, (4, 16, 16), "few blocks", dtype)
    test_wgnc_between_ffts(kernels, 129, 16, dtype)
    test_hadamard_transform(kernels, 14, dtype)
    test_compact_fourier(kernels, 15, dtype)
    test_wgnc(kernels, 15, 16, dtype)
    test_compact_fourier_by_other_ffts(kernels, 1000, dtype)
    test_a_sample_that_is_not_finite_is_nan_throughout(kernels, dtype)
    for inverse in (False, True):
        test_butterfly(kernels, (2, 64, 64), (64, 64), 12, inverse, dtype)
