"""Calls on a machine with other work: `python -m bench.busy`.

Beside a loop that does nothing for each core, calls on one thread and on all threads alternate. The table
gives medians and their ratio, then the same without the loops.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch

import noisetilt_kernels as nt

from .inputs import FLUX, gaussian, structured
from .timing import Function, time_calls

SECONDS = 10.0
"""Time for each call."""


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """Run `count` processes that take a core each."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.5)  # until they have started
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def compare(name: str, function: Function, threads: int) -> None:
    """Print a row: medians on one thread and on `threads`, alternating, and their ratio."""
    times: dict[int, list[float]] = {1: [], threads: []}
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times[1]) < 3:
        for count in times:
            torch.set_num_threads(count)
            function()
            times[count] += time_calls(function, 1)
    one, all_threads = median(times[1]), median(times[threads])
    print(
        f"| {name} | {one * 1e3:.2f} ms | {all_threads * 1e3:.2f} ms | {all_threads / one:.2f} |", flush=True
    )


def main() -> None:
    threads = torch.get_num_threads()
    if threads == 1:
        sys.exit("python -m bench.busy compares with one thread; allow several, or unset OMP_NUM_THREADS")
    x, noise = structured(FLUX), gaussian(FLUX)
    flat = x.flatten()
    lower, upper = (bounds.float() for bounds in nt.confidence_table(16384, 4))
    calls: dict[str, Function] = {
        "`whiten`, flux, 1/k field": lambda: nt.whiten(x),
        "`whiten`, flux, Gaussian noise": lambda: nt.whiten(noise),
        "`project_2os`, N = 65,536, D = 4": lambda: nt.project_2os(flat, lower, upper),
        "`project_wgnc`, N = 65,536": lambda: nt.project_wgnc(flat),
        "`compact_fourier`, N = 65,536": lambda: nt.compact_fourier(flat),
    }
    cores = os.cpu_count() or 1
    for loops in (cores, 0):
        print(f"\nbeside {loops} busy loops on {cores} cores\n")
        print(f"| call | one thread | {threads} threads | ratio |\n|---|---|---|---|")
        with busy_cores(loops):
            for name, function in calls.items():
                compare(name, function, threads)


if __name__ == "__main__":
    main()
