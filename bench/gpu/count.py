"""Count what the kernels do, without a GPU: their PTX is executed on the CPU (tests/ptx).

    python -m bench.gpu.count
    python -m bench.gpu.count --only "whiten flux" --full

Counts do not depend on the load of the machine. They are those of PTX for compute capability 9.0, on a device
with the 132 multiprocessors of an H200. ptxas may still remove or add instructions. PyTorch's FFTs are left
out.

launches      of kernels
barriers      of the whole grid: releases of a block (the most of one), summed over the launches; and, with a
              "c" behind the number, of thread block clusters
instructions  of warps, in millions
sectors       of 32 bytes in global memory, for a request of a warp, and the fewest that could hold its bytes
wavefronts    in shared memory, for a request of a warp, and the fewest
atomics       of threads, in global memory, and the most on one address
moved         bytes of all sectors, divided by the bytes of input and result
local         requests to local memory, and its bytes of a thread; ptxas may keep a part of it in registers
code          instructions of PTX
estimate      largest of the five bounds in `Count.bounds`: no measurement
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from noisetilt_kernels import confidence_table
from noisetilt_kernels.config import Sample, WhiteningConfig, flatten_mixing, resolve_preset
from noisetilt_kernels.python_ref.fourier import has_defined_fft

from ..inputs import FLUX, WAN, gaussian, structured
from . import ROOT

sys.path.append(str(ROOT / "tests"))
from cuda_emulation.arguments import half_length_fft, projection, turns, twiddles
from ptx.build import load

FIELDS = {"noise": gaussian, "1/k": structured}
SUMMED = (
    "warp_instructions",
    "global_requests",
    "global_sectors",
    "ideal_sectors",
    "shared_requests",
    "shared_wavefronts",
    "ideal_wavefronts",
    "global_atomics",
    "local_requests",
    "cluster_barriers",
    "bytes_read",
    "bytes_written",
)
MADE_ONCE = ("rank_ranges_kernel", "table_faults_kernel")
"""Kernels that a later call with the same table does not launch."""

SMS, CLOCK = 132, 1.755e9
"""Multiprocessors of an H200, and their clock in Hz (NVIDIA's data sheets)."""
BARRIER_SECONDS = 1.5e-6
"""Time of a barrier of the grid: an assumption, two round trips to the second-level cache."""
LAUNCH_SECONDS = 1.5e-6
"""Time from one kernel to the next in a CUDA graph: an assumption."""


@dataclass
class Count:
    """Counts of one case: sums over its launches."""

    name: str
    backend: str
    launches: int
    barriers: int
    code: int
    local_bytes: int
    most_on_one_address: int
    needed_bytes: int
    sums: dict[str, int]
    of_a_multiprocessor: dict[str, float]
    """The same for one of the multiprocessors that a launch has blocks for."""

    @property
    def bounds(self) -> dict[str, float]:
        """Estimates of the seconds that the kernels would take if only one resource limited them.

        instructions: 4 warps of a multiprocessor issue one in each cycle. Loops that wait are counted, too.
        shared memory: a multiprocessor serves one wavefront in each cycle.
        global memory: a multiprocessor gets 64 bytes in each cycle from the second-level cache. What the
        first-level cache serves is counted, too.
        barriers: BARRIER_SECONDS each; those of clusters are left out. launches: LAUNCH_SECONDS each.

        A launch with fewer blocks than multiprocessors leaves the others idle.
        """
        each = self.of_a_multiprocessor
        return {
            "instructions": each["warp_instructions"] / (4 * CLOCK),
            "shared memory": each["shared_wavefronts"] / CLOCK,
            "global memory": (each["bytes_read"] + each["bytes_written"]) / (64 * CLOCK),
            "barriers": self.barriers * BARRIER_SECONDS,
            "launches": self.launches * LAUNCH_SECONDS,
        }


def count_of(name: str, backend: str, launches: list[dict[str, Any]], needed_bytes: int) -> Count:
    kept = [launch for launch in launches if not launch["kernel"].startswith(MADE_ONCE)]
    return Count(
        name,
        backend,
        launches=len(kept),
        barriers=sum(launch["releases"] for launch in kept),
        code=sum({launch["kernel"]: launch["instructions"] for launch in kept}.values()),
        local_bytes=max(launch["local_bytes"] for launch in kept),
        most_on_one_address=max(launch["most_atomics_on_one_address"] for launch in kept),
        needed_bytes=needed_bytes,
        sums={what: sum(launch[what] for launch in kept) for what in SUMMED},
        of_a_multiprocessor={
            what: sum(launch[what] / min(launch["blocks"], SMS) for launch in kept) for what in SUMMED
        },
    )


# ---- cases ----


@dataclass
class Case:
    """Call of an operator on a batch, by the kernels of the CUDA library and of the Triton backend."""

    name: str
    make: Callable[[], Tensor]
    cuda: Callable[[ModuleType, Tensor], object]
    triton: Callable[[Any, Tensor], object]
    minutes: float  # about, of the CUDA kernels; cases of many minutes need --full


def whiten_by_cuda(config: WhiteningConfig, kernels: ModuleType, x: Tensor) -> None:
    shape = x.shape[1:]
    arguments = projection(shape, x.dtype, config.chunk_sizes, config.chunk_sizes, config.tile_sizes)
    y = kernels.project(kernels.finite_or_nan(x.numpy()), **arguments)
    z = compact_fourier_by_cuda(kernels, torch.from_numpy(y).flatten(1), False)
    z = kernels.project(z.view(x.shape).numpy(), **arguments)
    y = compact_fourier_by_cuda(kernels, torch.from_numpy(z).flatten(1), True)
    kernels.project_mixing_domains(y.view(x.shape).numpy(), **arguments, mixing=flatten_mixing(config))


def compact_fourier_by_cuda(kernels: ModuleType, x: Tensor, inverse: bool) -> Tensor:
    if has_defined_fft(x.shape[1]):
        return torch.from_numpy(kernels.compact_fourier(x.numpy(), twiddles(x), inverse=inverse))
    if inverse:
        spectrum = kernels.compact_fourier_unpack(x.numpy(), turns(x))
        return half_length_fft(torch.from_numpy(spectrum), inverse=True)
    return torch.from_numpy(kernels.compact_fourier_pack(half_length_fft(x).numpy(), turns(x)))


def whiten(preset: str, shape: tuple[int, int, int], field: str, batch: int, minutes: float) -> Case:
    config = resolve_preset(preset, Sample(*shape), 1e-3)

    def make() -> Tensor:
        x = FIELDS[field](shape)
        return torch.stack([x.roll(k, dims=-1) for k in range(batch)])

    return Case(
        f"whiten {preset}, {field}, batch {batch}",
        make,
        partial(whiten_by_cuda, config),
        lambda operators, x: operators.whiten(x, config),
        minutes,
    )


def project_2os(chunk_size: int, field: str, size: int = 65_536) -> Case:
    lower, upper = (bound.float() for bound in confidence_table(size // chunk_size, chunk_size))
    return Case(
        f"project_2os, N = {size}, D = {chunk_size}, {field}",
        lambda: FIELDS[field](FLUX).reshape(1, -1)[:, :size],
        lambda kernels, x: kernels.project(
            x.view(1, 1, 1, -1).numpy(), tables=[(lower.numpy(), upper.numpy())], num_values=1, tiles=[]
        ),
        lambda operators, x: operators.project_2os(x, lower, upper),
        0.1,
    )


def butterfly(tile: tuple[int, int], steps: int, shape: tuple[int, int, int] = FLUX) -> Case:
    return Case(
        f"butterfly {tile[0]}x{tile[1]}, {steps} steps",
        lambda: gaussian((1, *shape)),
        lambda kernels, x: kernels.butterfly(x.numpy(), tile=list(tile), steps=steps),
        lambda operators, x: operators.butterfly(x, tile, steps, False),
        0.1,
    )


def hadamard_transform(size: int, rows: int = 16) -> Case:
    return Case(
        f"hadamard_transform {size}, {rows} rows",
        lambda: gaussian((rows, size)),
        lambda kernels, x: kernels.hadamard_transform(x.numpy(), scale=size**-0.5),
        lambda operators, x: operators.hadamard_transform(x, size**-0.5),
        0.1,
    )


def compact_fourier(size: int, inverse: bool, batch: int = 1) -> Case:
    return Case(
        f"compact_fourier{'_inverse' * inverse}, N = {size}, batch {batch}",
        lambda: gaussian((batch, size)),
        lambda kernels, x: compact_fourier_by_cuda(kernels, x, inverse),
        lambda operators, x: operators.compact_fourier(x, inverse),
        0.1,
    )


def project_wgnc(size: int, batch: int = 1) -> Case:
    return Case(
        f"project_wgnc, N = {size}, batch {batch}",
        lambda: gaussian((batch, size)),
        lambda kernels, x: kernels.project_wgnc(x.numpy(), twiddles(x), block_size=16),
        lambda operators, x: operators.project_wgnc(x, 16),
        0.1,
    )


def project_wgnc_blocks(size: int) -> Case:
    return Case(
        f"project_wgnc_blocks, {size} values",
        lambda: gaussian((1, size)),
        lambda kernels, x: kernels.project_wgnc_blocks(x.numpy(), block_size=16),
        lambda operators, x: operators.project_wgnc_blocks(torch.view_as_complex(x.view(1, -1, 2)), 16),
        0.1,
    )


CASES = [
    *(whiten("flux", FLUX, field, 1, 0.5) for field in FIELDS),
    *(whiten("flux", FLUX, field, 8, 4) for field in FIELDS),
    *(whiten("flux", FLUX, field, 64, 30) for field in FIELDS),
    *(whiten("wan", WAN, field, 1, 20) for field in FIELDS),
    *(project_2os(chunk_size, field) for chunk_size in (4, 16) for field in FIELDS),
    butterfly((64, 64), 12),
    butterfly((8, 8), 6),
    hadamard_transform(4096),
    *(compact_fourier(65_536, inverse) for inverse in (False, True)),
    project_wgnc(65_536),
    project_wgnc_blocks(65_536),
]
SMALL_CASES = [
    *(whiten("auto", (4, 16, 16), field, 1, 0.1) for field in FIELDS),
    project_2os(4, "noise", 4096),
    butterfly((16, 16), 8, (4, 16, 16)),
    hadamard_transform(1024, 2),
    *(compact_fourier(32_768, inverse) for inverse in (False, True)),
    project_wgnc(4096),
    project_wgnc_blocks(4096),
]
"""Cases whose counts a test compares with bench/gpu/counts.json."""
MOST_MINUTES = 5
"""Cases of the CUDA kernels that take longer need --full."""


# ---- execution ----


def count_cuda(case: Case) -> Count:
    kernels = load("kernels_sm_90")
    kernels.set_device(num_sms=SMS)
    kernels.machine.counting, kernels.machine.check_races = True, False
    x = case.make().contiguous()
    case.cuda(kernels, x)
    return count_of(case.name, "cuda", kernels.machine.take_launches(), 2 * x.nbytes)


def count_triton(case: Case) -> Count:
    from ptx.triton_device import triton_device  # here, because importing Triton takes a while

    from noisetilt_kernels.backends import triton

    x = case.make().contiguous()
    with tempfile.TemporaryDirectory() as cache, triton_device(90, cache) as device:
        device.machine.counting, device.machine.check_races = True, False
        case.triton(triton, x)
        return count_of(case.name, "triton", device.machine.take_launches(), 2 * x.nbytes)


def count_case(place: tuple[str, int, str]) -> Count:
    """Count a case, given as the list that has it, its place there, and the backend. For another process."""
    cases, number, backend = place
    torch.set_num_threads(1)
    return {"cuda": count_cuda, "triton": count_triton}[backend](globals()[cases][number])


def count(cases: str, backends: Iterable[str], chosen: Callable[[Case], bool]) -> Iterator[Count]:
    """Count the chosen cases of CASES or SMALL_CASES, in as many processes as there are cores."""
    load("interpreter")  # built once, here
    places = [
        (cases, k, backend) for backend in backends for k, case in enumerate(globals()[cases]) if chosen(case)
    ]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        yield from pool.map(count_case, places)


HEADER = (
    "| case | launches | barriers | instructions | sectors | wavefronts | atomics | most on one | moved "
    "| local | code | estimate | bound |"
)


def row_of(count: Count) -> str:
    sums, bounds = count.sums, count.bounds
    bound = max(bounds, key=bounds.__getitem__)

    def per_request(memory: str, what: str) -> str:
        requests = sums[f"{memory}_requests"]
        found, ideal = (sums[f"{kind}_{what}"] for kind in (memory, "ideal"))
        return f"{found / requests:.1f} of {ideal / requests:.1f}" if requests else "-"

    cells = [
        count.name,
        count.launches,
        f"{count.barriers} + {sums['cluster_barriers']}c" if sums["cluster_barriers"] else count.barriers,
        f"{sums['warp_instructions'] / 1e6:.2f}",
        per_request("global", "sectors"),
        per_request("shared", "wavefronts"),
        sums["global_atomics"],
        count.most_on_one_address,
        f"{(sums['bytes_read'] + sums['bytes_written']) / count.needed_bytes:.1f}x",
        f"{sums['local_requests']} ({count.local_bytes})" if count.local_bytes else "-",
        count.code,
        f"{1e6 * bounds[bound]:.0f} us",
        bound,
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=["cuda", "triton"], help="count one backend only")
    parser.add_argument("--only", default="", help="count the cases whose names begin with this")
    parser.add_argument("--full", action="store_true", help="also count the cases that take up to an hour")
    parser.add_argument("--write", type=Path, help="write the counts of the small cases to a file")
    arguments = parser.parse_args()
    backends = [arguments.backend] if arguments.backend else ["cuda", "triton"]

    def chosen(case: Case) -> bool:
        return case.name.startswith(arguments.only) and (arguments.full or case.minutes <= MOST_MINUTES)

    if arguments.write:
        small = {
            f"{c.backend}: {c.name}": counts_of(c) for c in count("SMALL_CASES", backends, lambda case: True)
        }
        arguments.write.write_text(json.dumps(small, indent=2) + "\n")
        return
    shown = None
    for found in count("CASES", backends, chosen):
        if found.backend != shown:
            shown = found.backend
            print(f"\n{shown}\n\n{HEADER}\n{'|---' * HEADER.count(' | ')}|---|", flush=True)
        print(row_of(found), flush=True)


def counts_of(count: Count) -> dict[str, int]:
    """Return the counts that must not grow."""
    return {"launches": count.launches, "barriers": count.barriers, "code": count.code, **count.sums}


if __name__ == "__main__":
    main()
