"""CPU emulation of CUDA: correct toy kernels pass, and each bug planted in one is found."""

import os
import re
import subprocess
from types import ModuleType

import pytest
from cuda_emulation.build import PLANTS, build, load

SHAPES = [(5, 64), (1, 32), (7, 96), (3, 256)]  # blocks, threads of each
LAUNCH_ERRORS = {  # error of the launch; the other bugs give wrong results
    ("reduce", "divergent barrier"): "(has|have) exited",
    (
        "reduce",
        "two barriers",
    ): "waits at __syncthreads in reduce, .*toys.cu:[0-9]+, but others of the block at",
    ("reduce", "exit"): "exited",
    ("reduce", "absent lane"): r"waiting at __shfl_xor_sync\(0xffffffff\) in reduce, .*toys.cu:[0-9]+",
    ("reduce", "other operation"): "__shfl_.*, but other lanes at __shfl_",
    (
        "reduce",
        "foreign mask",
    ): r"thread \(7, 0, 0\) of block .*: __shfl_xor_sync\(0xff00\) in reduce, .* by lane 7",
    (
        "exchange",
        "lost block",
    ): "no thread can go on:.*waiting at __syncthreads in exchange.* waiting at a poll",
    ("exchange", "ordinary launch"): "no thread can go on",
    ("exchange", "too large"): "too many blocks in cooperative launch",
    ("exchange of clusters", "too large"): "too many blocks in cooperative launch",
    ("reverse", "overwrite"): "has written past its shared memory",
    ("reverse", "not allowed"): "invalid argument",
    ("reverse", "over the limit"): "invalid argument",
    ("reverse", "too many threads"): "invalid argument",
    (
        "neighbours",
        "two barriers",
    ): "no thread can go on:.*waiting at __syncthreads in neighbours.*waiting at cluster_sync",
    ("neighbours", "exit"): "has exited, but others of the cluster wait|threads of the cluster have exited",
    ("neighbours", "late address"): r"of_cluster_block: block \(.*\) of the cluster has ended",
    ("neighbours", "absent rank"): r"thread \(3, 0, 0\) .*: rank 4 in a cluster of 4 blocks",
    ("neighbours", "foreign pointer"): "the pointer is not into the block's own shared memory",
    ("neighbours", "too large"): "cluster misconfiguration",
    ("neighbours", "not portable"): "cluster misconfiguration",
    ("neighbours", "not a multiple"): "cluster misconfiguration",
    ("neighbours", "old device"): "operation not supported",
    ("census", "early end"): "of the cluster has ended|to the shared memory of block .* has ended",
}
WRONG = [
    ("reduce", "no barrier"),
    ("scan", "no barrier"),
    ("scan", "no second barrier"),
    ("rotate", "no syncwarp"),
    ("histogram", "no barrier"),
    ("histogram", "no second barrier"),
    ("tally", "no barrier"),
    ("exchange", "no grid barrier"),
    ("reverse", "stale"),
    ("reverse", "overrun"),
    ("neighbours", "no barrier"),
    ("neighbours", "barrier of the block"),
    ("neighbours", "other rank"),
    ("neighbours", "early end"),
    ("census", "no barrier"),
    ("relay", "barrier of the block"),
    ("relay", "no second barrier"),
]
# Found only in traced code: the results are right if every write is visible to all threads at once.
MEMORY_MODEL = [
    ("ring", "unordered wait"),
    ("ring", "relaxed store"),
    ("ring", "relaxed load"),
    ("ring", "scope of a block"),
    ("ring", "constant load"),
    ("finale", "no fence"),
    ("finale", "no second fence"),
]
RACES = [  # in shared memory
    ("reduce", "no barrier"),
    ("scan", "no barrier"),
    ("scan", "no second barrier"),
    ("rotate", "no syncwarp"),
    ("rotate", "shuffle"),
    ("histogram", "no barrier"),
    ("histogram", "no second barrier"),
    ("neighbours", "no barrier"),
    ("neighbours", "barrier of the block"),
    ("census", "no barrier"),
    ("census", "plain counter"),
]
ONLY_RACES = [("rotate", "shuffle"), ("census", "plain counter")]  # the results are right anyway
CAUGHT_OFTEN = [  # not always
    ("histogram", "plain counter"),  # load and store follow each other directly
    ("ring", "no barrier"),
]
SELDOM_CAUGHT = [("finale", "no barrier")]  # traced: nearly always
TOYS = [
    *("reduce", "scan", "rotate", "rank", "histogram", "tally", "exchange", "team", "ring", "finale"),
    *("volatile finale", "reverse", "collectives", "exchange of clusters", "neighbours", "census", "relay"),
]


@pytest.fixture(scope="module")
def toys() -> ModuleType:
    return load("toys")


@pytest.fixture(scope="module")
def traced_toys() -> ModuleType:
    return load("toys_traced")


def set_device(toys: ModuleType, threads: int, seed: int) -> None:
    toys.set_device(num_sms=3, threads_per_block=threads, threads_per_sm=2 * threads, seed=seed)


def test_every_bug_is_tested(toys: ModuleType) -> None:
    bugs = {(toy, bug) for toy, bugs in toys.bugs().items() for bug in bugs}
    assert bugs == {
        *(*LAUNCH_ERRORS, *WRONG, *CAUGHT_OFTEN, *SELDOM_CAUGHT, *ONLY_RACES, *MEMORY_MODEL),
    }
    assert set(TOYS) == set(toys.bugs())


@pytest.mark.parametrize("toy", TOYS)
def test_correct_toys_pass(toys: ModuleType, traced_toys: ModuleType, toy: str) -> None:
    for blocks, threads in SHAPES:
        for module, seeds in ((toys, 50), (traced_toys, 10)):
            for seed in range(seeds):
                set_device(module, threads, seed)
                assert module.run(toy, "", blocks, threads), f"{blocks} x {threads}, seed {seed}"


@pytest.mark.parametrize(("toy", "bug"), WRONG)
def test_missing_synchronisation_gives_wrong_results(toys: ModuleType, toy: str, bug: str) -> None:
    for seed in range(100):
        set_device(toys, 64, seed)
        assert not toys.run(toy, bug, 5, 64), f"not found with seed {seed}"


@pytest.mark.parametrize(("toy", "bug"), RACES)
def test_races_in_shared_memory(traced_toys: ModuleType, toy: str, bug: str) -> None:
    for seed in range(5):
        set_device(traced_toys, 64, seed)
        with pytest.raises(
            RuntimeError, match=r"race at byte \d+ of shared memory: .*toys.cu:\d+.*toys.cu:\d+"
        ):
            traced_toys.run(toy, bug, 5, 64)


def test_accesses_to_blocks_that_have_ended(traced_toys: ModuleType) -> None:
    for seed in range(5):
        set_device(traced_toys, 64, seed)
        with pytest.raises(
            RuntimeError, match=r"toys.cu:.* accesses shared memory of block .*, which has ended"
        ):
            traced_toys.run("neighbours", "early end", 5, 64)


def test_large_clusters(toys: ModuleType, traced_toys: ModuleType) -> None:
    for module, threads in ((toys, 1024), (traced_toys, 64)):
        for size in (8, 15, 16):
            module.set_device(num_sms=16, seed=size)
            assert module.large_clusters(size, 3, threads)
        module.set_device(num_sms=16, blocks_per_cluster=12)
        with pytest.raises(RuntimeError, match="cluster misconfiguration"):
            module.large_clusters(13, 1, 64)


@pytest.mark.parametrize(
    ("size", "threads", "shared_bytes", "expected"),
    [(1, 512, 0, 160), (16, 512, 0, 10), (16, 1024, 0, 5), (8, 64, 227 << 10, 5), (16, 64, 227 << 10, 2)],
)
def test_clusters_share_the_multiprocessors_of_a_gpc(
    toys: ModuleType, size: int, threads: int, shared_bytes: int, expected: int
) -> None:
    toys.set_device(num_sms=40, sms_per_gpc=16)
    assert toys.active_clusters(size, threads, shared_bytes, False) == expected
    toys.set_device(num_sms=40, sms_per_gpc=16, compute_capability=80)
    if size > 1:
        with pytest.raises(RuntimeError, match="not supported"):
            toys.active_clusters(size, threads, shared_bytes, False)


def test_clusters_of_more_than_8_blocks_need_permission(toys: ModuleType) -> None:
    toys.set_device(num_sms=40)
    assert toys.active_clusters(8, 64, 0, True) > 0
    with pytest.raises(RuntimeError, match="cluster misconfiguration"):
        toys.active_clusters(9, 64, 0, True)


def times_found(toys: ModuleType, toy: str, bug: str) -> int:
    found = 0
    for seed in range(100):
        set_device(toys, 64, seed)
        found += not toys.run(toy, bug, 5, 64)
    return found


@pytest.mark.parametrize(("toy", "bug"), CAUGHT_OFTEN)
def test_short_races_are_often_found(toys: ModuleType, toy: str, bug: str) -> None:
    assert times_found(toys, toy, bug) >= 50


@pytest.mark.parametrize(("toy", "bug"), [*MEMORY_MODEL, *SELDOM_CAUGHT, ("ring", "no barrier")])
def test_faults_of_the_memory_model(toys: ModuleType, traced_toys: ModuleType, toy: str, bug: str) -> None:
    # The second fence of the last block matters only if another block releases between its two fences.
    assert times_found(traced_toys, toy, bug) >= (30 if bug == "no second fence" else 95)
    if (toy, bug) in MEMORY_MODEL:
        assert times_found(toys, toy, bug) == 0


def test_some_launches_hide_all_stores_and_others_half_of_them(traced_toys: ModuleType) -> None:
    hidden, counts = 0, []
    for seed in range(100):
        set_device(traced_toys, 64, seed)
        seen = traced_toys.peeks(5, 64)
        assert min(seen) >= 1, "a block does not see its own store"
        hidden += max(seen) == 1
        counts += seen
    assert 65 <= hidden <= 90
    assert max(counts) > 2


@pytest.mark.parametrize("fault", PLANTS)
def test_faults_of_team_sync(fault: str) -> None:
    toys = load(f"toys_{fault}")
    for blocks, threads in SHAPES:
        for seed in range(6):
            set_device(toys, threads, seed)
            assert not toys.run("team", "", blocks, threads), f"{blocks} x {threads}, seed {seed}"


@pytest.mark.parametrize(("toy", "bug"), LAUNCH_ERRORS)
def test_launches_that_fail(toys: ModuleType, toy: str, bug: str) -> None:
    for seed in range(3):
        set_device(toys, 64, seed)
        with pytest.raises(RuntimeError, match=re.compile(LAUNCH_ERRORS[toy, bug], re.DOTALL)):
            toys.run(toy, bug, 5, 64)
        set_device(toys, 64, seed)
        assert toys.run(toy, "", 5, 64), "a failure disturbs the next launch"


def test_errors_name_kernel_block_and_thread(toys: ModuleType) -> None:
    set_device(toys, 64, seed=0)
    with pytest.raises(RuntimeError, match=r"reduce\(.*\): thread \(7, 0, 0\) of block \(0, 0, 0\): "):
        toys.run("reduce", "foreign mask", 1, 64)


def test_a_seed_fixes_the_order(toys: ModuleType) -> None:
    def outcomes() -> list[bool]:
        results = []
        for seed in range(20):
            set_device(toys, 64, seed)
            results.append(toys.run("histogram", "plain counter", 2, 64))
        return results

    first = outcomes()
    assert first == outcomes()
    assert len(set(first)) == 2


@pytest.mark.slow
def test_address_sanitizer() -> None:
    """AddressSanitizer finds overruns, and reports nothing for correct toys."""
    program = build("toys_asan")
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # abandoned fibers leak

    def output(toy: str, bug: str, seed: int) -> str:
        command = [str(program), toy, bug, str(seed)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        return result.stdout + result.stderr

    for seed in range(3):
        for toy in TOYS:
            assert output(toy, "", seed) == "right\n"
        assert "exited" in output("reduce", "exit", seed)
        for bug in ("overrun", "overwrite"):
            assert re.search(
                "heap-buffer-overflow.*in reverse .*toys.cu", output("reverse", bug, seed), re.DOTALL
            )
