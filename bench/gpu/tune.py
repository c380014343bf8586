"""Write noisetilt_kernels/backends/triton/launch_table.json: the GPU's fastest block sizes and warps.

For each kernel in turn, a small grid of candidates is measured in place of the table's entry, on the problems
of that kernel, as CUDA graphs. The best candidate replaces the entry if it is more than 2% faster in two
measurements and all results keep their bits. Several processes compile the candidates beforehand.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..inputs import FLUX, WAN, structured
from .measure import DEVICE, Function, Graph, replay_times

Sizes = dict[str, int]
Table = dict[str, Sizes]
# (kernel, sizes) -> seconds; infinite after an error or a wrong result
Measure = Callable[[str, Sizes], float]

PATH = Path(__file__).parents[2] / "noisetilt_kernels" / "backends" / "triton" / "launch_table.json"
BETTER = 0.98

GRIDS: dict[str, dict[str, tuple[int, ...]]] = {  # kernels that take most of the time come first
    "sort_runs_kernel": {"values": (2048, 4096, 8192), "entries": (512, 1024, 2048), "warps": (4, 8, 16)},
    "rank_in_runs_kernel": {"lookups": (1024, 2048, 4096), "runs": (16, 32), "warps": (2, 4, 8)},
    "project_vectors_kernel": {"entries": (512, 1024, 2048), "warps": (4, 8, 16)},
    "tile_stats_kernel": {"values": (512, 1024, 2048, 4096), "warps": (2, 4, 8)},
    "butterfly_kernel": {"values": (4096, 8192), "warps": (4, 8, 16)},
    "project_wgnc_blocks_kernel": {"blocks": (32, 64, 128, 256), "warps": (1, 2, 4, 8)},
    "fft_kernel": {"values": (512, 1024, 2048, 4096), "warps": (2, 4, 8)},
    "compact_spectrum_kernel": {"coefficients": (256, 512, 1024), "warps": (2, 4, 8)},
    "compact_fourier_kernel": {"coefficients": (512, 1024, 2048), "warps": (4, 8)},
    "find_non_finite_kernel": {"values": (1024, 2048, 4096), "warps": (4, 8)},
    "finite_or_nan_kernel": {"values": (1024, 2048, 4096), "warps": (4, 8)},
}


# ---- candidates ----


def candidates(current: Sizes, grid: Mapping[str, Iterable[int]]) -> list[Sizes]:
    """Return all sizes of a grid except the current ones, sorted by the number of changes.

    Sizes that the grid does not name keep their current values.
    """
    found = [current | dict(zip(grid, sizes, strict=True)) for sizes in itertools.product(*grid.values())]

    def changes(sizes: Sizes) -> int:
        return sum(sizes[name] != current[name] for name in grid)

    return sorted(filter(changes, found), key=changes)


def descend(
    table: Table,
    grids: Mapping[str, Mapping[str, Iterable[int]]],
    measure: Measure,
    in_time: Callable[[], bool] = lambda: True,
    tell: Callable[[str], None] = print,
) -> Table:
    """Return the table with the better entries that were found in time. Kernels are tuned one by one."""
    table = {kernel: dict(sizes) for kernel, sizes in table.items()}
    for kernel, grid in grids.items():
        if not in_time():
            tell(f"{kernel}: not tuned, the time limit was reached")
            continue
        current, tried = table[kernel], 0
        best, least = current, measure(kernel, current)
        standing = least
        for sizes in candidates(current, grid):
            if not in_time():
                break
            seconds, tried = measure(kernel, sizes), tried + 1
            if seconds < least:
                best, least = sizes, seconds
        if best is not current and least < BETTER * standing:
            again = measure(kernel, current), measure(kernel, best)
            if again[1] < BETTER * again[0]:
                table[kernel] = best
        verdict = (
            f"{best}, {standing / least:.2f}x as fast" if table[kernel] is best is not current else "kept"
        )
        tell(f"{kernel}: {current}: {verdict}; {tried} others measured")
        measure(kernel, table[kernel])  # the kernel now uses this entry
    return table


def render(table: Table) -> str:
    """Return the text of the file: one line for each kernel."""
    lines = (f"  {json.dumps(kernel)}: {json.dumps(sizes)}" for kernel, sizes in table.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


# ---- measurement ----


def problems() -> dict[str, list[Callable[[], Tensor]]]:
    """Return, for each kernel, functions that spend much of their time in it."""
    import noisetilt_kernels  # noqa: F401  (the operators)
    from noisetilt_kernels.backends.triton.whitening import finite_or_nan

    ops = torch.ops.noisetilt
    flux, wan = structured(FLUX).to(DEVICE), structured(WAN).to(DEVICE)
    many = torch.randn(1024, *FLUX, device=DEVICE)  # 256 MiB
    flat, spectra = many.view(1024, -1), torch.view_as_complex(many.view(1024, -1, 2))
    whiten = [lambda: ops.whiten(flux, "flux"), lambda: ops.whiten(wan, "wan")]

    def compact_fourier(x: Tensor) -> list[Callable[[], Tensor]]:
        return [partial(ops.compact_fourier, x, inverse) for inverse in (False, True)]

    finite = [lambda: finite_or_nan(flux[None]), lambda: finite_or_nan(many)]
    return {
        "sort_runs_kernel": whiten,
        "rank_in_runs_kernel": whiten,
        "project_vectors_kernel": whiten,
        "tile_stats_kernel": whiten,
        "butterfly_kernel": [
            partial(ops.butterfly, many, tile, steps)
            for tile, steps in (([64, 64], 12), ([64, 64], 1), ([8, 8], 6))
        ],
        "fft_kernel": compact_fourier(flat),
        "compact_spectrum_kernel": compact_fourier(flat),
        "compact_fourier_kernel": compact_fourier(flat[:, :65_520].contiguous()),
        "project_wgnc_blocks_kernel": [
            lambda: ops.project_wgnc_blocks(spectra),
            lambda: ops.project_wgnc_blocks(spectra, 64),
            lambda: ops.project_wgnc(flat[:1]),
            lambda: ops.project_wgnc(flat[:1, :65_504]),
        ],
        "find_non_finite_kernel": finite,
        "finite_or_nan_kernel": finite,
    }


class OnGpu:
    """Measurement of a kernel with other sizes: geometric mean of the times of its problems."""

    def __init__(self) -> None:
        self._problems = problems()
        self._expected: dict[str, list[Tensor]] = {}  # results of the problems with the original table

    def __call__(self, kernel: str, sizes: Sizes) -> float:
        use(kernel, sizes)
        try:
            results = [bits(function()) for function in self._problems[kernel]]
            expected = self._expected.setdefault(kernel, results)
            if not all(map(torch.equal, results, expected)):
                print(f"  {kernel} {sizes}: rejected, the results have other bits", flush=True)
                return math.inf
            times = [graph_seconds(function) for function in self._problems[kernel]]
        except Exception as error:  # most likely out of shared memory
            print(
                f"  {kernel} {sizes}: {type(error).__name__}: {str(error).splitlines()[0][:150]}", flush=True
            )
            return math.inf
        mean = math.exp(sum(map(math.log, times)) / len(times))
        print(f"  {kernel} {sizes}: {', '.join(f'{seconds * 1e6:.1f}' for seconds in times)} us", flush=True)
        return mean


def use(kernel: str, sizes: Sizes) -> None:
    """Let all later launches of the kernel use these sizes."""
    from noisetilt_kernels.backends.triton.launch import set_blocks

    set_blocks(kernel, **sizes)


def bits(x: Tensor) -> Tensor:
    x = torch.view_as_real(x) if x.is_complex() else x
    return x.contiguous().view(torch.int32)


def graph_seconds(function: Function) -> float:
    return replay_times(Graph(function), cold=False)["p50"]


# ---- compilation ahead ----


def compile_ahead(table: Table, seconds: float) -> None:
    """Compile the candidates in other processes, into Triton's cache, until the time limit is reached."""
    wanted = [(kernel, sizes) for kernel, grid in GRIDS.items() for sizes in candidates(table[kernel], grid)]
    workers = max(1, min(12, len(os.sched_getaffinity(0)) - 2))
    deadline = time.monotonic() + seconds

    def run(share: list[tuple[str, Sizes]]) -> None:
        command = [sys.executable, "-m", "bench.gpu.tune", "--compile", json.dumps(share)]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, timeout=max(1.0, deadline - time.monotonic()), stdout=subprocess.DEVNULL)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, (wanted[k::workers] for k in range(workers))))


def compile_only(wanted: list[tuple[str, Sizes]], table: Table) -> None:
    """Call the problems of each kernel with the given sizes, which makes Triton compile them."""
    functions = problems()
    for kernel, sizes in wanted:
        use(kernel, sizes)
        for function in functions[kernel]:
            try:
                function()
            except Exception:
                traceback.print_exc()
        use(kernel, table[kernel])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.tune", description=__doc__)
    parser.add_argument("--seconds", type=float, default=170, help="time limit (default: 170)")
    parser.add_argument(
        "--output", type=Path, default=PATH, help="file to write (default: the package's table)"
    )
    parser.add_argument("--compile", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench.gpu.tune: torch finds no GPU; the table was not changed")
        return 2
    table: Table = json.loads(PATH.read_text())
    if os.environ.setdefault("NOISETILT_BACKEND", "triton") != "triton":
        print(
            f"bench.gpu.tune: NOISETILT_BACKEND is {os.environ['NOISETILT_BACKEND']}; "
            "unset it, or set it to triton"
        )
        return 2
    if options.compile:
        compile_only(options.compile, table)
        return 0
    begin = time.monotonic()
    compile_ahead(table, 0.5 * options.seconds)
    print(f"compiled ahead: {time.monotonic() - begin:.0f} s", flush=True)
    better = descend(table, GRIDS, OnGpu(), lambda: time.monotonic() - begin < 0.9 * options.seconds)
    options.output.write_text(render(better))
    print(f"\nold:\n{render(table)}\nnew, in {options.output}:\n{render(better)}")
    changed = sum(table[kernel] != better[kernel] for kernel in table)
    print(f"{changed} of {len(table)} kernels have other sizes; {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
