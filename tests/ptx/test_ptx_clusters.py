"""Clusters through the stand-in of the CUDA runtime: a toy kernel that nvcc has compiled, executed."""

from types import ModuleType

import numpy as np
import pytest
from ptx.build import NVCC, load
from ptx.plants import replaced

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
BARRIER = r"barrier\.cluster\.arrive\S+;\s+barrier\.cluster\.wait\S+;"


@pytest.fixture
def clusters() -> ModuleType:
    module = load("clusters")
    module.edit_ptx(lambda ptx: ptx)
    module.machine.stale = False
    module.set_device(num_sms=16)
    return module


def run(clusters: ModuleType, size: int, threads: int, num: int = 3, non_portable: bool = True) -> None:
    """Run clusters of a size, and check what their blocks have read and added."""
    words = np.random.default_rng(size).integers(0, 1000, (num, size, threads))
    found = clusters.run(words.ravel().tolist(), num * size, size, non_portable)
    expected = [*np.roll(words, -1, axis=1).ravel(), *words.sum(axis=(1, 2))]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 16])
@pytest.mark.parametrize("threads", [32, 96])
def test_blocks_of_a_cluster_share_memory(clusters: ModuleType, size: int, threads: int) -> None:
    for seed in range(5):
        clusters.set_device(num_sms=16, seed=seed)
        clusters.machine.stale = bool(seed % 2)
        run(clusters, size, threads)


@pytest.mark.parametrize(
    ("pattern", "replacement", "number", "message"),
    [
        (BARRIER, "", 0, "a race: "),
        (BARRIER, "", 1, "a race: |which has ended"),
        (BARRIER, "bar.sync 0;", 0, "a race: "),
        (r"arrive\.release", "arrive.relaxed", 0, "a race: "),
        (r"barrier\.cluster\.arrive\S+;", "", 0, "at which it has not arrived"),
        (r"barrier\.cluster\.wait\S+;", "", 0, "a race: |without having waited"),
        (r"(mapa\.u64 \S+, \S+) \S+;", r"\1 7;", 0, "rank 7 in a cluster of 5 blocks"),
        (r"(mapa\.u64 \S+, \S+) \S+;", r"\1 3;", 0, "not equal"),
    ],
)
def test_planted_faults_are_found(
    clusters: ModuleType, pattern: str, replacement: str, number: int, message: str
) -> None:
    def edit(ptx: str) -> str:
        edited = replaced(ptx, pattern, replacement, number)
        assert edited != ptx, f"the PTX has no {pattern}"
        return edited

    clusters.edit_ptx(edit)
    for seed in range(10):
        clusters.set_device(num_sms=16, seed=seed)
        with pytest.raises((AssertionError, clusters.Fault), match=message):
            run(clusters, 5, 64)


def test_launches_that_fail(clusters: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="cluster misconfiguration"):
        run(clusters, 9, 32, non_portable=False)
    with pytest.raises(RuntimeError, match="cluster misconfiguration"):
        run(clusters, 17, 32)
    with pytest.raises(RuntimeError, match="cluster misconfiguration"):
        clusters.run([0] * 7 * 32, 7, 2, True)  # 7 blocks in clusters of 2
    clusters.set_device(num_sms=3)
    with pytest.raises(RuntimeError, match="cluster misconfiguration"):
        run(clusters, 16, 1024)
    clusters.set_device(compute_capability=80)
    run(clusters, 1, 32)
    with pytest.raises(RuntimeError, match="not supported"):
        run(clusters, 2, 32)


@pytest.mark.parametrize(
    ("size", "threads", "shared_bytes", "expected"),
    [(1, 512, 0, 80), (16, 512, 0, 5), (16, 1024, 0, 2), (8, 64, 227 << 10, 5), (16, 64, 227 << 10, 2)],
)
def test_clusters_share_the_multiprocessors_of_a_gpc(
    clusters: ModuleType, size: int, threads: int, shared_bytes: int, expected: int
) -> None:
    clusters.set_device(num_sms=40, sms_per_gpc=16)
    assert clusters.active_clusters(size, threads, shared_bytes, True) == expected
    if size > 8:
        with pytest.raises(RuntimeError, match="cluster misconfiguration"):
            clusters.active_clusters(size, threads, shared_bytes, False)


def test_attributes_of_the_device(clusters: ModuleType) -> None:
    assert clusters.attributes() == [9, 0, 1]
    clusters.set_device(compute_capability=86)
    assert clusters.attributes() == [8, 6, 0]


def test_counts(clusters: ModuleType) -> None:
    clusters.machine.counting = True
    run(clusters, 4, 64)
    (launch,) = clusters.machine.take_launches()
    clusters.machine.counting = False
    assert launch["blocks_per_cluster"] == 4
    assert launch["cluster_barriers"] == 2
    assert launch["cluster_atomics"] == 3 * 3 * 64
