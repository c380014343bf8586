"""Steps of `bench/gpu.sh` that check and measure the preferred backend.

`python -m bench.gpu.checks STEP [WORD]` runs the cases of a step, or those with a word in their names.

load      import the package, compare it with what `prepare` built
bits      first call, results of all operators, compared with those of the reference
repeats   whiten gives the same result 20 times
times     times of calls and of graph replays, bits of the replays
barrier   time of a barrier between the blocks of a grid
blocks    whiten with 16, 32 and 64 blocks; needs the library `any_blocks`
streams   whiten on two streams at once
"""

import ctypes
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import pairwise

import torch
from bits import assert_same_bits
from torch import Tensor

import noisetilt_kernels as nt
from noisetilt_kernels import confidence_table
from noisetilt_kernels.cli import doctor

from ..inputs import FLUX, WAN, gaussian, structured
from ..report import fine
from . import CARRIED, expected, measure, prepare
from .facts import run_cases, tell, tell_machine, tell_row
from .measure import DEVICE, Graph, call_times, event_times, replay_times

ops = torch.ops.noisetilt
BACKEND = nt.backends()["cuda"].backend

Checks = dict[str, Callable[[], str]]


# ---- load ----


def load() -> Checks:
    return {"installation": installation, "sources": sources}


def installation() -> str:
    report = doctor.examine()
    print(doctor.render(report), flush=True)
    machine = measure.machine_info()
    tell_machine({"backend": BACKEND, "machine_info": machine})
    tell(", ".join(f"{name} {value}" for name, value in machine.items()))
    status = nt.backends()["cuda"]
    if BACKEND in ("none", "reference"):
        raise RuntimeError(f"no kernels serve: {status.detail}, {status.refused}")
    return f"{BACKEND} serves: {status.detail}"


def sources() -> str:
    """Compare the sources with those that the carried libraries were built from."""
    prepared = json.loads((CARRIED / "prepared.json").read_text())
    if prepared["sources"] != prepare.digest_of_sources():
        # No error, after which they would be built here: libraries that load are tested all the same.
        tell("the carried libraries were built from OTHER SOURCES; run `bench/gpu.sh prepare`")
    return f"the libraries were built for {prepared['architectures']}"


# ---- bits ----


def bits() -> Checks:
    contents = expected.Expected()
    num_tables = expected.unpack_tables()
    tell(f"{num_tables} confidence tables are in the cache", num_tables > 0)
    checks: Checks = {"first call, flux": first_call}
    for name, case in expected.CASES.items():
        if BACKEND == "cuda" or not case.of_cuda:
            checks[name] = partial(check_bits, case, name, contents)
    return checks


def first_call() -> str:
    x = torch.eye(64)
    assert_same_bits(ops.hadamard_transform(x.to(DEVICE), 1.0).cpu(), ops.hadamard_transform(x, 1.0))
    return "a Walsh-Hadamard transform has the CPU's bits"


def check_bits(case: expected.Case, name: str, contents: expected.Expected) -> str:
    """Compare a batch, and each of its samples alone, on which more of the GPU works."""
    x, wanted = contents.input(case).to(DEVICE), contents.result(name)
    text = case.compare(case.op(x).cpu(), wanted)
    if len(x) == 1:
        return text
    alone = torch.cat([case.op(x[k : k + 1].clone()) for k in range(len(x))]).cpu()
    return f"batch {len(x)}: {text}; batch 1: {case.compare(alone, wanted)}"


# ---- repeats ----

REPEATS = 20


def repeats() -> Checks:
    made: dict[str, Callable[[], Tensor]] = {
        f"flux, batch {batch}": partial(flux_batch, batch) for batch in (1, 8, 64)
    }
    made |= expected.VIDEOS
    return {f"whiten {name}": partial(check_repeats, make) for name, make in made.items()}


def flux_batch(batch: int) -> Tensor:
    fields = [structured(FLUX), gaussian(FLUX)]
    return torch.stack([fields[k % 2].roll(k, dims=-1) for k in range(batch)])


def check_repeats(make: Callable[[], Tensor]) -> str:
    x = make().to(DEVICE)
    first = ops.whiten(x)
    if not bool(first.isfinite().all()):
        raise AssertionError("the result is not finite")
    differ = [int((ops.whiten(x) != first).sum()) for _ in range(REPEATS - 1)]
    if any(differ):
        raise AssertionError(f"{sum(map(bool, differ))} of {REPEATS} results differ, in {differ} values")
    return f"{REPEATS} equal results"


# ---- times ----


def times() -> Checks:
    """A dozen rows. Each is short, so that all of them are measured within half a minute."""
    measure.SECONDS = 0.1
    x, y = structured(FLUX).to(DEVICE), gaussian(FLUX).to(DEVICE)
    flat, large = y.view(1, -1), torch.randn(1024, *FLUX, device=DEVICE)
    lower, upper = (t.float().to(DEVICE) for t in confidence_table(16_384, 4))
    functions: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
        "whiten flux, noise": (lambda: ops.whiten(y, "flux"), y),
        "whiten flux, 1/k": (lambda: ops.whiten(x, "flux"), x),
        "project_2os, D = 4, noise": (lambda: ops.project_2os(flat, lower, upper), flat),
        "project_2os, D = 4, 1/k": (lambda: ops.project_2os(x.view(1, -1), lower, upper), x),
        "project_tile_stats 8x8": (lambda: ops.project_tile_stats(y, [8, 8], [4, 16]), y),
        "project_wgnc, N = 65,536": (lambda: ops.project_wgnc(flat), flat),
        "compact_fourier, batch 1": (lambda: ops.compact_fourier(flat), flat),
        "butterfly 64x64, 12 steps, 256 MiB": (lambda: ops.butterfly(large, [64, 64], 12), large),
        "hadamard_transform 4096, 256 MiB": (
            lambda: ops.hadamard_transform(large.view(-1, 4096), 0.5),
            large,
        ),
    }
    for batch in (8, 64):
        many = flux_batch(batch).to(DEVICE)
        functions[f"whiten flux, batch {batch}"] = (partial(ops.whiten, many, "flux"), many)
    for name, make in expected.VIDEOS.items():
        sample = make().to(DEVICE).view(1, *WAN)
        functions[f"whiten {name}"] = (partial(ops.whiten, sample, "wan"), sample)
    checks: Checks = {name: partial(time_row, name, *row) for name, row in functions.items()}
    return checks | {"CUB, D = 4, noise": partial(time_cub, y)} if BACKEND == "cuda" else checks


def time_row(name: str, function: Callable[[], Tensor], x: Tensor) -> str:
    result = function()
    graph = Graph(function)
    row = measure.Row(name)
    row.seconds["warm"] = replay_times(graph, cold=False)
    row.launches = graph.launches()
    graph.result.fill_(torch.nan)
    graph.replay()
    assert_same_bits(graph.result, result, "replay")
    row.seconds["cold"] = replay_times(graph, cold=True)
    row.seconds["call"] = call_times(function)
    row.notes["between events, time"] = event_times(function)["p50"]
    row.floors["copy"] = replay_times(Graph(x.clone), cold=False)["p50"]
    tell_row(asdict(row))
    medians = {kind: fine(seconds["p50"]) for kind, seconds in row.seconds.items()}
    return (
        f"replay {medians['warm']}, cold L2 {medians['cold']}, call {medians['call']}, between events "
        f"{fine(row.notes['between events, time'])}, a copy {fine(row.floors['copy'])}, "
        f"{row.launches} launches; the replay has the call's bits"
    )


def time_cub(x: Tensor) -> str:
    from . import cases

    function = cases.cub_sort(0, x.flatten(), 4)
    return f"segmented radix sort alone, replay {fine(replay_times(Graph(function), cold=False)['p50'])}"


# ---- barrier between blocks ----

BLOCK_THREADS = 512  # of the projection kernel (csrc/cuda/policy.h)
BARRIERS = 2000


def barrier() -> Checks:
    library = ctypes.CDLL(str(CARRIED / "barrier.so"))
    return {f"{blocks} blocks": partial(time_barrier, library, blocks) for blocks in (1, 16, 32, 64, 128)}


def time_barrier(library: ctypes.CDLL, blocks: int) -> str:
    arrivals = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    words = torch.zeros(2 * blocks, dtype=torch.int32, device=DEVICE)
    wrong = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)

    def enqueue(name: str, barriers: int, *tensors: Tensor) -> None:
        arrivals.zero_()
        pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (arrivals, *tensors))
        failed = getattr(library, name)(blocks, BLOCK_THREADS, barriers, *pointers, stream)
        if failed:
            raise RuntimeError(f"CUDA error {failed}")

    enqueue("noisetilt_exchanges", BARRIERS, words, wrong)
    if int(wrong):
        raise AssertionError(f"{int(wrong)} of {blocks * BARRIERS} words were not visible after a barrier")
    many, none = (
        event_times(partial(enqueue, "noisetilt_barriers", barriers))["p50"] for barriers in (BARRIERS, 0)
    )
    return f"{fine((many - none) / BARRIERS)} a barrier; {blocks * BARRIERS} words seen after barriers"


MOST_BLOCKS = "NOISETILT_MOST_BLOCKS"  # read by the library `any_blocks` at every launch (any_blocks.cu)


def blocks() -> Checks:
    x, y = structured(FLUX).to(DEVICE), gaussian(FLUX).to(DEVICE)
    return {f"{most} blocks": partial(time_blocks, most, x, y) for most in (16, 32, 64)}


def time_blocks(most: int, x: Tensor, y: Tensor) -> str:
    os.environ.pop(MOST_BLOCKS, None)
    wanted = ops.whiten(x, "flux")
    os.environ[MOST_BLOCKS] = str(most)
    graph = Graph(lambda: ops.whiten(x, "flux"))
    assert_same_bits(graph.result, wanted)
    noise = Graph(lambda: ops.whiten(y, "flux"))
    found = ((name, replay_times(g, cold=False)["p50"]) for name, g in (("1/k", graph), ("noise", noise)))
    return "whiten flux, replay: " + ", ".join(f"{name} {fine(seconds)}" for name, seconds in found)


# ---- streams ----


def streams() -> Checks:
    """Pairs of inputs, each whitened on a stream of its own at the same time."""
    made = {
        "flux 1/k": structured(FLUX)[None],
        "flux batch 7": gaussian((7, *FLUX)),
        "wan": expected.video("walk"),
    }
    inputs = {name: x.to(DEVICE) for name, x in made.items()}
    pairs = [("flux 1/k", "flux 1/k"), *pairwise(inputs), ("wan", "wan")]
    return {f"{a} and {b}": partial(two_streams, (a, b), inputs) for a, b in pairs}


def two_streams(names: tuple[str, str], inputs: dict[str, Tensor]) -> str:
    calls = 3 if "wan" in names else REPEATS
    wanted = {name: ops.whiten(inputs[name]) for name in names}
    lanes = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    results: list[tuple[str, Tensor]] = []
    for _ in range(calls):
        for name, stream in zip(names, lanes, strict=True):
            with torch.cuda.stream(stream):
                results.append((name, ops.whiten(inputs[name])))
    torch.cuda.synchronize()
    for name, result in results:
        assert_same_bits(result, wanted[name], name)
    return f"{len(results)} results have the bits of a single stream"


COMPILING = 3  # times the seconds of a case, for kernels that are compiled at the first call
STEPS: dict[str, tuple[Callable[[], Checks], float]] = {  # step: cases, seconds of each
    "load": (load, 25),
    "bits": (bits, 15),
    "repeats": (repeats, 15),
    "times": (times, 15),
    "barrier": (barrier, 8),
    "blocks": (blocks, 10),
    "streams": (streams, 12),
}


def main() -> int:
    if not torch.cuda.is_available():
        print("bench.gpu.checks: torch finds no GPU; nothing was run")
        return 2
    step, *words = sys.argv[1:]
    make, seconds = STEPS[step]
    cases = {name: case for name, case in make().items() if all(word in name for word in words)}
    return run_cases(cases, seconds * (COMPILING if BACKEND == "triton" else 1))


if __name__ == "__main__":
    sys.exit(main())
