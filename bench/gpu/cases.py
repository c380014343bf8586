"""Cases of the benchmarks on a GPU, in groups, with their comparisons and targets."""

import ctypes
import math
import os
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

import noisetilt_kernels as nt
from noisetilt_kernels import confidence_table, python_ref
from noisetilt_kernels.backends import cuda, reference
from noisetilt_kernels.config import Sample, WhiteningConfig, resolve_preset
from noisetilt_kernels.profile.parts import parts_of_whiten

from .. import baselines
from ..inputs import FLUX, WAN, gaussian, structured
from . import CARRIED, ROOT
from .measure import (
    DEVICE,
    Check,
    Function,
    Graph,
    Row,
    call_times,
    compare,
    copy_floor,
    gpu_times,
    measure,
    replay_times,
)

ops = torch.ops.noisetilt
BACKEND = nt.backends()["cuda"].backend

FIELDS = {"1/k": structured, "noise": gaussian}


class Failure(NamedTuple):
    """Error of a case that failed."""

    name: str
    error: str


Rows = Iterator[Row | Failure]
GROUPS: dict[str, tuple[int, Callable[[], Rows]]] = {}  # name: time limit in seconds, cases


def group(seconds: int, only: str = BACKEND) -> Callable[[Callable[[], Rows]], Callable[[], Rows]]:
    def add(cases: Callable[[], Rows]) -> Callable[[], Rows]:
        if only == BACKEND:
            GROUPS[cases.__name__] = seconds, cases
        return cases

    return add


def guarded(case: Callable[..., Row], *args: object) -> Row | Failure:
    """Return the case's row, or its error: an exception must not stop the other cases."""
    try:
        return case(*args)
    except Exception as error:
        traceback.print_exc()
        what = [str(arg).strip() for arg in args if isinstance(arg, (str, int, float, tuple))]
        return Failure(f"{case.__name__}({', '.join(what)})", f"{type(error).__name__}: {str(error)[:500]}")


def faster(row: Row, what: str, ratio: float, **targets: float | None) -> None:
    """Add a ratio to the row: as a check if the backend has a target, otherwise as a note."""
    target = targets.get(BACKEND)
    if target is None:
        row.notes[what] = round(ratio, 2)
    else:
        row.checks.append(Check(what, ratio, "x", target, at_least=True))


def within(row: Row, what: str, seconds: float, **targets: float | None) -> None:
    target = targets.get(BACKEND)
    if target is not None:
        row.checks.append(Check(what, seconds, "s", target, at_least=False))


def num_bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


# ---- whiten ----


def whitening(preset: str, shape: tuple[int, ...], field: str) -> tuple[Tensor, WhiteningConfig]:
    channels, height, width = shape
    return FIELDS[field](shape).to(DEVICE), resolve_preset(preset, Sample(channels, height, width), 1e-4)


def whiten_once(preset: str, shape: tuple[int, ...], field: str, seconds: float, ratio: float) -> Row:
    """Measure whiten of one sample. Targets of the CUDA library: `seconds` of the GPU, `ratio` over eager."""
    x, config = whitening(preset, shape, field)

    def ours() -> Tensor:
        return ops.whiten(x, preset)

    row = measure(f"whiten {preset}, {field}", ours, num_bytes(x))
    within(row, "GPU time", row.seconds["warm"]["p50"], cuda=seconds)
    idiomatic = partial(baselines.whiten, x, config)
    eager: dict[str, Function] = {
        "python_ref": lambda: reference.whiten(x[None], config),
        "idiomatic": idiomatic,
    }
    over_eager = compare(row, eager, seconds=0.6)
    faster(row, "over eager", over_eager, cuda=ratio)
    in_graph = over_eager * row.seconds["call"]["p50"] / row.seconds["warm"]["p50"]
    faster(row, "in a graph, over eager", in_graph, triton=20 if preset == "flux" else None)
    if preset == "flux":
        fastest = min((name for name in eager if name in row.against), key=row.against.__getitem__)
        sequence, theirs = (call_times(function, calls=4)["p50"] for function in (ours, eager[fastest]))
        row.notes |= {"calls in sequence, time": sequence, f"{fastest} in sequence, time": theirs}
        faster(row, "calls in sequence, over eager", theirs / sequence, triton=6)
        try:
            row.notes["idiomatic in a graph, GPU time"] = replay_times(Graph(idiomatic), cold=False)["p50"]
        except RuntimeError as error:
            row.notes["idiomatic in a graph failed"] = str(error).splitlines()[0][:200]
    if BACKEND == "triton":
        row.notes["Triton's launches"] = triton_launches(ours)
    row.notes["peak memory beyond the input, in inputs"] = round(peak_memory(ours, x), 2)
    return row


def triton_launches(function: Function) -> str:
    """Return how many times a call launches each kernel, as text."""
    from noisetilt_kernels.backends.triton.launch import Launch

    counts: Counter[str] = Counter()
    launch = Launch.__call__

    def counted(self: Any, *tensors: Tensor) -> None:
        counts[self._kernel.fn.__name__] += 1
        launch(self, *tensors)

    with mock.patch.object(Launch, "__call__", counted):
        function()
    return f"{counts.total()} ({', '.join(f'{name} {count}' for name, count in counts.most_common())})"


def peak_memory(function: Function, x: Tensor) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / num_bytes(x)


def whiten_batch(field: str) -> Row:
    """Measure batches, and compare them with one sample."""
    x, _ = whitening("flux", FLUX, field)
    times = {}
    for batch in (1, 2, 4, 8, 16, 64):
        many = torch.stack([x.roll(k, dims=-1) for k in range(batch)])
        times[batch] = gpu_times(partial(ops.whiten, many, "flux"))[0]["warm"]["p50"]
    row = measure(f"whiten flux, {field}, batch 64", lambda: ops.whiten(many, "flux"), num_bytes(many))
    row.notes["GPU time of batches"] = times
    if BACKEND == "cuda":
        clusters = resident_clusters()
        row.notes["resident clusters of 16 blocks"] = clusters
        eight = 2.0 if clusters is not None and clusters < 8 else 1.5
        row.checks.append(Check("batch 8 / batch 1", times[8] / times[1], "x", eight, at_least=False))
        row.checks.append(Check("batch 64 / batch 1", times[64] / times[1], "x", 7.0, at_least=False))
    return row


def stages(preset: str, shape: tuple[int, ...], field: str) -> Rows:
    """Measure the parts of whiten, each on its input within whiten."""
    if BACKEND != "cuda":
        return
    x, config = whitening(preset, shape, field)
    x = x[None]
    copy = copy_floor(num_bytes(x))
    for part in parts_of_whiten(cuda, x, config):
        run = partial(part.run, x)
        row = guarded(measure, f"  {part.name} ({preset}, {field})", run, num_bytes(x), False)
        if part.copies and isinstance(row, Row):  # without the copy that keeps the input
            for kind in ("warm", "cold"):
                row.seconds[kind] = {k: max(v - copy[kind]["p50"], 0.0) for k, v in row.seconds[kind].items()}
        yield row
        x = run()


@group(75)
def whiten_flux() -> Rows:
    yield guarded(whiten_once, "flux", FLUX, "1/k", 0.8e-3, 40)
    yield guarded(whiten_once, "flux", FLUX, "noise", 0.5e-3, 40)
    for field in FIELDS:
        yield guarded(whiten_batch, field)
    for field in FIELDS:
        yield from stages("flux", FLUX, field)


FIRST_CALL = """
import time
import torch
import noisetilt_kernels

x = torch.randn(16, 64, 64, device="cuda")
torch.cuda.synchronize()
start = time.perf_counter()
torch.ops.noisetilt.whiten(x, "flux")
torch.cuda.synchronize()
print(time.perf_counter() - start)
"""


def first_call_of_a_process() -> Row:
    """Measure the first call of a process, with the confidence tables in the cache on disk."""
    x, _ = whitening("flux", FLUX, "noise")
    ops.whiten(x, "flux")
    row = Row("whiten flux, first call of a process")
    with TemporaryDirectory() as cache:
        for what in ("nothing compiled, time", "compiled kernels on disk, time"):
            environment = {**os.environ, "TRITON_CACHE_DIR": cache}
            command = [sys.executable, "-c", FIRST_CALL]
            run = subprocess.run(
                command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=50
            )
            if run.returncode:
                raise RuntimeError(run.stderr[-500:])
            row.notes[what] = float(run.stdout.split()[-1])
    within(row, "nothing compiled", row.notes["nothing compiled, time"], triton=10)
    return row


@group(60, only="triton")
def first_call() -> Rows:
    yield guarded(first_call_of_a_process)


@group(75)
def whiten_wan() -> Rows:
    yield guarded(whiten_once, "wan", WAN, "1/k", 5e-3, 20)
    yield guarded(whiten_once, "wan", WAN, "noise", 3e-3, 20)
    for field in FIELDS:
        yield from stages("wan", WAN, field)


# ---- order statistics ----


def cub() -> ctypes.CDLL | None:
    """Return the library of radix_sort.cu, or None if it has not been built."""
    path = CARRIED / "radix_sort.so"
    return ctypes.CDLL(str(path)) if path.exists() else None


def resident_clusters() -> int | None:
    library = cub()
    return None if library is None else int(library.noisetilt_clusters_of_16())


def cub_sort(kind: int, x: Tensor, chunk_size: int) -> Function:
    """Return a function that sorts, by CUB, the columns of x's chunks together with their places."""
    library = cub()
    if library is None:
        raise RuntimeError("radix_sort.cu has not been built; run `bench/gpu.sh prepare`")
    size, length = x.numel(), x.numel() // chunk_size
    keys = x.view(-1, chunk_size).t().contiguous().flatten()
    if kind == 2:  # the order-preserving bits of the key, below the column
        bits = keys.view(torch.int32).long()
        ordered = torch.where(bits < 0, ~bits & 0xFFFFFFFF, bits | 0x80000000)
        keys = ordered | (torch.arange(size, device=DEVICE) // length << 32)
    sorted_keys, places = torch.empty_like(keys), torch.arange(size, dtype=torch.int32, device=DEVICE)
    sorted_places = torch.empty_like(places)
    num_bytes = ctypes.c_size_t()

    def run(memory: int | None) -> None:
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (keys, sorted_keys, places, sorted_places)]
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        arguments = (*pointers, chunk_size, length, stream)
        failed = library.noisetilt_sort(kind, ctypes.c_void_p(memory), ctypes.byref(num_bytes), *arguments)
        if failed:
            raise RuntimeError(f"CUB: CUDA error {failed}")

    run(None)
    memory = torch.empty(max(num_bytes.value, 1), dtype=torch.uint8, device=DEVICE)
    run(memory.data_ptr())
    expected = x.view(-1, chunk_size).t().sort(dim=1, stable=True).values.flatten()
    found = x.view(-1, chunk_size).t().contiguous().flatten()[sorted_places.long()]
    if not torch.equal(found, expected):
        raise RuntimeError("the result of CUB's sort is not sorted")
    return lambda: run(memory.data_ptr())


CUB = ("CUB segmented radix sort", "CUB segmented sort", "CUB radix sort of wide keys")


def project_2os(chunk_size: int, field: str) -> Row:
    x = FIELDS[field](FLUX).flatten().to(DEVICE)
    lower, upper = (t.float().to(DEVICE) for t in confidence_table(x.numel() // chunk_size, chunk_size))
    row = measure(
        f"project_2os, D = {chunk_size}, {field}", lambda: ops.project_2os(x, lower, upper), num_bytes(x)
    )
    eager = {
        "python_ref": lambda: python_ref.project_2os(x[None], lower, upper),
        "idiomatic": lambda: baselines.project_2os(x, lower, upper),
    }
    faster(row, "over eager", compare(row, eager), cuda=15, triton=5)
    if BACKEND == "triton":
        return row
    for kind, name in enumerate(CUB):
        try:
            row.notes[f"{name}, GPU time"] = gpu_times(cub_sort(kind, x, chunk_size))[0]["warm"]["p50"]
        except (RuntimeError, OSError) as error:
            row.notes[f"{name} failed"] = str(error)
    segmented = [row.notes[f"{name}, GPU time"] for name in CUB[:2] if f"{name}, GPU time" in row.notes]
    if segmented:
        faster(row, "over CUB's faster segmented sort", min(segmented) / row.seconds["warm"]["p50"], cuda=2)
    return row


def project_tile_stats(side: int, field: str) -> Row:
    x = FIELDS[field](FLUX).to(DEVICE)
    row = measure(
        f"project_tile_stats {side}x{side}, {field}",
        lambda: ops.project_tile_stats(x, [side, side], [4, 16]),
        num_bytes(x),
    )
    eager = {
        "python_ref": lambda: reference.project_tile_stats(x[None], (side, side), (4, 16), 1e-4),
        "idiomatic": lambda: baselines.project_tile_stats(x, (side, side), (4, 16)),
    }
    faster(row, "over eager", compare(row, eager))
    return row


@group(60)
def order_stats() -> Rows:
    for field in FIELDS:
        for chunk_size in (4, 16):
            yield guarded(project_2os, chunk_size, field)
    for field in FIELDS:
        for side in (4, 8, 16):
            yield guarded(project_tile_stats, side, field)


# ---- bandwidth ----


def bandwidth(name: str, function: Function, x: Tensor, **targets: float | None) -> Row:
    """Measure a function, and compare it with a copy of the same number of bytes."""
    row = measure(name, function, num_bytes(x), call=False)
    fraction = row.floors["copy"] / row.seconds["warm"]["p50"]
    row.notes["copy, GB/s"] = round(2e-9 * num_bytes(x) / row.floors["copy"])
    faster(row, "of a copy's bandwidth", fraction, **targets)
    return row


def butterfly(tile: tuple[int, int], steps: int, mebibytes: int) -> Row:
    x = torch.randn(4 * mebibytes, *FLUX, device=DEVICE)
    name = f"butterfly {tile[0]}x{tile[1]}, {steps} step{'s' * (steps > 1)}, {mebibytes} MiB"
    cuda = 0.85 if mebibytes == 256 else None
    return bandwidth(name, lambda: ops.butterfly(x, tile, steps), x, cuda=cuda, triton=0.75)


def hadamard(size: int, dtype: torch.dtype) -> Row:
    x = torch.randn(2**28 // (size * dtype.itemsize), size, device=DEVICE, dtype=dtype)
    scale = size**-0.5
    name = f"hadamard_transform {size}, {str(dtype).removeprefix('torch.')}, 256 MiB"
    cuda = 0.9 if 512 <= size <= 8192 else None
    row = bandwidth(name, lambda: ops.hadamard_transform(x, scale), x, cuda=cuda)
    try:
        from fast_hadamard_transform import hadamard_transform  # type: ignore[import-not-found]
    except ImportError:
        return row
    if size <= 32768:
        theirs = gpu_times(lambda: hadamard_transform(x, scale))[0]["warm"]["p50"]
        row.notes["fast_hadamard_transform, GPU time"] = theirs
    return row


def small_butterfly() -> Row:
    x = gaussian(FLUX).to(DEVICE)
    row = measure("butterfly 64x64, 12 steps, 16x64x64", lambda: ops.butterfly(x, [64, 64], 12), num_bytes(x))
    eager = {
        "python_ref": lambda: python_ref.butterfly(x[None], (64, 64), 12),
        "idiomatic": lambda: baselines.repeated_butterfly(x, 12),
    }
    faster(row, "over eager", compare(row, eager))
    return row


def compact_fourier(batch: int, inverse: bool) -> Row:
    x = torch.randn(batch, 65536, device=DEVICE)
    row = measure(
        f"compact_fourier{' inverse' * inverse}, batch {batch}",
        lambda: ops.compact_fourier(x, inverse),
        num_bytes(x),
        call=batch == 1,
    )
    half_length = torch.view_as_complex(x.view(batch, -1, 2))
    row.notes["complex FFT by torch, GPU time"] = gpu_times(lambda: torch.fft.fft(half_length))[0]["warm"][
        "p50"
    ]
    return row


@group(60)
def transforms() -> Rows:
    for tile, steps in (((64, 64), 12), ((64, 64), 1), ((8, 8), 6)):
        for mebibytes in (64, 256):
            yield guarded(butterfly, tile, steps, mebibytes)
    yield guarded(small_butterfly)
    for exponent in range(5, 17, 2):
        for dtype in (torch.float32, torch.bfloat16):
            yield guarded(hadamard, 2**exponent, dtype)
    for batch in (1, 1024):
        for inverse in (False, True):
            yield guarded(compact_fourier, batch, inverse)


# ---- WGNC ----


def project_wgnc() -> Row:
    x = gaussian((1, 65536)).to(DEVICE)
    row = measure("project_wgnc, N = 65,536", lambda: ops.project_wgnc(x), num_bytes(x))
    within(row, "GPU time", row.seconds["warm"]["p50"], cuda=40e-6)
    eager = {
        "python_ref": lambda: python_ref.project_wgnc(x.double()).float(),
        "idiomatic": lambda: baselines.project_wgnc(x),
    }
    faster(row, "over float64 eager", compare(row, eager), cuda=20)
    half_length = torch.view_as_complex(x.view(1, -1, 2))
    both = gpu_times(lambda: torch.fft.ifft(torch.fft.fft(half_length)))[0]
    row.notes["FFT and inverse, GPU time"] = both["warm"]["p50"]
    return row


def project_wgnc_batch() -> Row:
    x = torch.randn(1024, 65536, device=DEVICE)
    row = measure("project_wgnc, batch 1024", lambda: ops.project_wgnc(x), num_bytes(x), call=False)
    half_length = torch.view_as_complex(x.view(1024, -1, 2))
    both = gpu_times(lambda: torch.fft.ifft(torch.fft.fft(half_length)))[0]
    row.notes["FFT and inverse, GPU time"] = both["warm"]["p50"]
    return row


def project_wgnc_blocks(block_size: int, cuda: float | None) -> Row:
    parts = torch.randn(1024, 32768, 2, device=DEVICE)
    y = torch.view_as_complex(parts)
    name = f"project_wgnc_blocks of {block_size}, 256 MiB"
    return bandwidth(name, lambda: ops.project_wgnc_blocks(y, block_size), parts, cuda=cuda)


@group(45)
def wgnc() -> Rows:
    yield guarded(project_wgnc)
    yield guarded(project_wgnc_batch)
    yield guarded(project_wgnc_blocks, 16, 0.6)
    yield guarded(project_wgnc_blocks, 32, None)


# ---- host time of a call ----


def dispatch(name: str, function: Function, cuda: float | None, calls: int = 8) -> Row:
    """Measure the host time of calls, in groups of `calls` into an empty queue, without waiting."""
    times = []
    for _ in range(20):
        function()
    for _ in range(60):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        times.append((time.perf_counter() - start) / calls)
    row = Row(f"dispatch of {name}")
    row.notes["host time"] = median(times)
    within(row, "host time", median(times), cuda=cuda)
    return row


@group(30)
def dispatches() -> Rows:
    x, y = gaussian((4, 16, 16)).to(DEVICE), gaussian((1, 1024)).to(DEVICE)
    lower, upper = (t.float().to(DEVICE) for t in confidence_table(256, 4))
    spectrum = torch.view_as_complex(y.view(1, -1, 2)).clone()
    functions: dict[str, Function] = {
        "whiten": lambda: ops.whiten(x),
        "project_2os": lambda: ops.project_2os(y, lower, upper),
        "project_tile_stats": lambda: ops.project_tile_stats(x, [4, 4], [4, 16]),
        "project_wgnc": lambda: ops.project_wgnc(y),
        "project_wgnc_blocks": lambda: ops.project_wgnc_blocks(spectrum),
        "compact_fourier": lambda: ops.compact_fourier(y),
        "butterfly": lambda: ops.butterfly(x, [16, 16], 8),
        "hadamard_transform": lambda: ops.hadamard_transform(y, 1 / math.sqrt(1024)),
    }
    yield guarded(dispatch, "torch.clone", y.clone, None)
    for name, function in functions.items():
        yield guarded(dispatch, name, function, 8e-6)
    flux = gaussian(FLUX).to(DEVICE)
    yield guarded(dispatch, "whiten flux", lambda: ops.whiten(flux, "flux"), None, 2)


# ---- whiten compared with torch.compile ----


@group(120)
def whiten_compiled() -> Rows:
    yield guarded(compiled)


def compiled() -> Row:
    """Compare whiten with torch.compile of the idiomatic version, in a CUDA graph."""
    x, config = whitening("flux", FLUX, "1/k")
    start = time.perf_counter()
    function = torch.compile(lambda x: baselines.whiten(x, config))
    function(x)
    torch.cuda.synchronize()
    row = measure("whiten flux, 1/k, and torch.compile", lambda: ops.whiten(x, "flux"), num_bytes(x))
    row.notes["seconds of compilation"] = round(time.perf_counter() - start, 1)
    row.against["compiled"] = call_times(lambda: function(x))["p50"]
    graph = replay_times(Graph(lambda: function(x)), cold=False)["p50"]
    row.against["compiled, in a graph (GPU time)"] = graph
    faster(row, "over torch.compile in a graph, GPU time", graph / row.seconds["warm"]["p50"], cuda=15)
    return row
