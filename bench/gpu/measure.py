"""Measurement of times on a GPU: graph replays with a warm or a cold L2 cache, and ordinary calls."""

import ctypes
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from .. import report

DEVICE = torch.device("cuda")

SECONDS = 0.25  # approximate duration of one measurement
ROUNDS = 5, 60  # smallest and largest number in one measurement
# Duration of a graph with a warm L2 cache. Shorter functions are captured several times in a row.
GRAPH_SECONDS = 2e-4

Function = Callable[[], object]
Seconds = dict[str, float]  # min, p20, p50, p80


@dataclass
class Check:
    """A measured value and its target."""

    what: str
    value: float
    unit: str  # "x" for ratios, "s" for times
    target: float
    at_least: bool  # the target is a lower limit; if False, an upper limit

    @property
    def met(self) -> bool:
        return self.value >= self.target if self.at_least else self.value <= self.target


@dataclass
class Row:
    """Measurements of one case."""

    name: str
    # "warm", "cold": GPU times. "call": wall-clock time until the result is available.
    seconds: dict[str, Seconds] = field(default_factory=dict)
    launches: int | None = None
    # Medians: a copy of the same number of bytes, and the same number of launches of tiny kernels.
    floors: Seconds = field(default_factory=dict)
    against: Seconds = field(default_factory=dict)  # medians of other implementations, called in the same way
    checks: list[Check] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


def percentiles(times: list[float]) -> Seconds:
    fifths = quantiles(times, n=5) if len(times) > 1 else times * 4
    return {"min": min(times), "p20": fifths[0], "p50": median(times), "p80": fifths[3]}


def call_times(function: Function, seconds: float | None = None, calls: int = 1) -> Seconds:
    """Return wall-clock times of a call until its result is available, averaged over `calls` in sequence."""

    def once() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    first = once()
    if first < 2:
        first = min(once() for _ in range(3))
    return percentiles([once() / calls for _ in range(_rounds(first, seconds))])


def _rounds(each: float, seconds: float | None = None) -> int:
    least, most = ROUNDS
    return max(least, min(most, int((seconds or SECONDS) / max(each, 1e-7))))


class Graph:
    """CUDA graph of a function, captured `copies` times in a row."""

    def __init__(self, function: Function, copies: int = 1):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # makes tables and FFT plans, and compiles
            for _ in range(2):
                function()
        torch.cuda.synchronize()
        self.copies = copies
        self.graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(self.graph):
            for _ in range(copies):
                self.result: Any = function()  # every replay writes it
        self.graph.instantiate()
        self.replay()
        torch.cuda.synchronize()

    def replay(self) -> None:
        self.graph.replay()

    def launches(self) -> int | None:
        """Return the number of kernels, copies and fills of a call; None if the graph does not give it."""
        count = ctypes.c_size_t()
        try:
            library = ctypes.CDLL(f"libcudart.so.{(torch.version.cuda or '').split('.')[0]}")
            graph = ctypes.c_void_p(self.graph.raw_cuda_graph())
            failed = library.cudaGraphGetNodes(graph, None, ctypes.byref(count))
        except (OSError, AttributeError, RuntimeError):
            return None
        return None if failed else count.value // self.copies


_flushed: list[Tensor] = []


def flush() -> None:
    """Enqueue a write of four times the size of the L2 cache."""
    if not _flushed:
        size = getattr(torch.cuda.get_device_properties(DEVICE), "L2_cache_size", 0) or 64 << 20
        _flushed.append(torch.empty(4 * size, dtype=torch.int8, device=DEVICE))
    _flushed[0].zero_()


def replay_times(graph: Graph, cold: bool) -> Seconds:
    """Return GPU times of one copy of the function in the graph."""

    def enqueue() -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if cold:
            flush()
        start.record()
        graph.replay()
        end.record()
        return start, end

    def seconds(events: list[tuple[torch.cuda.Event, torch.cuda.Event]]) -> list[float]:
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 / graph.copies for start, end in events]

    each = min(seconds([enqueue() for _ in range(3)])) * graph.copies
    return percentiles(seconds([enqueue() for _ in range(_rounds(each))]))


def event_times(function: Function) -> Seconds:
    """Return times between events before and after a call, which include waiting for the host."""

    def once() -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) * 1e-3

    each = min(once() for _ in range(3))
    return percentiles([once() for _ in range(_rounds(each))])


def gpu_times(function: Function) -> tuple[dict[str, Seconds], int | None]:
    """Return warm and cold times of the GPU, and the number of launches."""
    single = Graph(function)
    cold = replay_times(single, cold=True)
    once = replay_times(single, cold=False)
    copies = min(50, int(GRAPH_SECONDS / once["p50"]) + 1)
    warm = once if copies == 1 else replay_times(Graph(function, copies), cold=False)
    return {"warm": warm, "cold": cold}, single.launches()


_floors: dict[tuple[str, int], dict[str, Seconds]] = {}


def copy_floor(num_bytes: int) -> dict[str, Seconds]:
    """Return the times of torch.clone of `num_bytes` bytes."""
    if ("copy", num_bytes) not in _floors:
        x = torch.zeros(num_bytes, dtype=torch.uint8, device=DEVICE)
        _floors["copy", num_bytes] = gpu_times(x.clone)[0]
    return _floors["copy", num_bytes]


def launch_floor(launches: int) -> dict[str, Seconds]:
    """Return the times of `launches` kernels in a row, each of which adds 1 to one number."""
    if ("launch", launches) not in _floors:
        x = torch.zeros(1, device=DEVICE)

        def chain() -> None:
            for _ in range(launches):
                x.add_(1)

        _floors["launch", launches] = gpu_times(chain)[0]
    return _floors["launch", launches]


def measure(name: str, function: Function, num_bytes: int, call: bool = True) -> Row:
    """Return a row with times and floors. `num_bytes`: size of the input, which equals that of the result."""
    row = Row(name)
    row.seconds, row.launches = gpu_times(function)
    if call:
        row.seconds["call"] = call_times(function)
    row.floors["copy"] = copy_floor(num_bytes)["warm"]["p50"]
    row.floors["copy, cold"] = copy_floor(num_bytes)["cold"]["p50"]
    if row.launches:
        row.floors["launches"] = launch_floor(row.launches)["warm"]["p50"]
    return row


def compare(row: Row, others: Mapping[str, Function], seconds: float | None = None) -> float:
    """Add the call times of other implementations to the row; return the fastest divided by ours.

    A failure of another implementation becomes a note of the row.
    """
    for name, function in others.items():
        try:
            row.against[name] = call_times(function, seconds)["p50"]
        except (RuntimeError, TypeError, ValueError) as error:
            row.notes[f"{name} failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    fastest = min((row.against[name] for name in others if name in row.against), default=float("nan"))
    return fastest / row.seconds["call"]["p50"]


def machine_info() -> dict[str, Any]:
    device = torch.cuda.get_device_properties(0)
    query = [
        "nvidia-smi",
        "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit",
        "--format=csv,noheader",
    ]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        driver = ""
    return {
        "gpu": device.name,
        "multiprocessors": device.multi_processor_count,
        "memory_bytes": device.total_memory,
        "l2_bytes": getattr(device, "L2_cache_size", None),
        "driver, clocks, power limit": driver,
        "cpu": report.cpu_model(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton_version(),
    }


def triton_version() -> str | None:
    try:
        import triton  # not importlib.metadata: its distributions have several names
    except ImportError:
        return None
    return triton.__version__
