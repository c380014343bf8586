"""Compile the Triton kernels and check the result. Needs no GPU.

The functions of the package are called as programs call them, so that Triton compiles the same variants of
each kernel. A stand-in for the driver gives Triton its target. Nothing is launched.

The checks for each of TARGETS: no spilled register and no local memory; shared memory within the budget;
nothing that changes bits (fused multiply-adds, approximations, denormal numbers flushed to zero); no element
that two warps hold in a kernel that works in place; and a limit on the compilation time of the first call of
`whiten`. The names of some targets as arguments check these alone.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from noisetilt_kernels.backends import tables
from noisetilt_kernels.backends import triton as operators
from noisetilt_kernels.backends.tables import Table
from noisetilt_kernels.backends.triton import MOST_BLOCK_COEFFICIENTS
from noisetilt_kernels.backends.triton.launch import LAUNCH_TABLE, shared_by_warps
from noisetilt_kernels.config import Sample, resolve_preset

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
IN_FULL = "sm_90"  # for other targets only the kernels of `whiten` and a few more calls are compiled

MOST_SHARED = {"cuda": 48 * 1024, "hip": 64 * 1024}
MOST_SECONDS = 60.0  # the goal is 10, but machines differ, and may be busy

IN_PLACE = "HALF_SPECTRUM"  # the constant of calls that work in place

# Exceptions for kernels, by the beginning of their names, with the reason.
MAY_USE_LOCAL_MEMORY: dict[str, str] = {
    "butterfly_kernel<fp64": "where it also rescales: 14 to 21 registers around roots and divisions",
    "project_vectors_kernel<fp64, SIZE=1024": "one register on sm_100",
}
MAY_USE_MORE_SHARED: dict[str, str] = {}

# Patterns that change bits: in LLVM's code, in PTX or amdgcn, and in SASS or amdgcn.
LENIENT = re.compile(
    r"\b(?:fast|reassoc|nsz|arcp|contract|afn)\b(?= .*\b(?:float|double)\b)"
    r"|!fpmath|llvm\.fmuladd\.\w+|llvm\.amdgcn\.(?:rcp|sqrt)\.\w+"
)
INEXACT = {
    "cuda": re.compile(r"\b(?:fma|mad)\.[\w.]*f(?:32|64)|\b[\w.]+\.(?:ftz|approx|full)\b[\w.]*"),
    "hip": re.compile(r"float_denorm_mode_\w+ [012]"),
}
FUSED = {
    "cuda": re.compile(r"\b[FD]FMA2?\b"),
    "hip": re.compile(r"\bv_(?:pk_)?(?:fma|fmac|fmamk|fmaak|mac|mad)_(?:legacy_)?f(?:32|64)"),
}
# Operations that are compiled to several steps, some of them fused: roots and divisions, also of 64-bit
# integers.
IN_STEPS = re.compile(
    r"\b(?:arith\.divf|tt\.precise_divf|math\.sqrt|tt\.precise_sqrt)\b|\barith\.(?:div|rem)[su]i .*i64"
)


@dataclass
class Kernel:
    """Compiled variant of a kernel."""

    name: str  # with its dtype and constants
    backend: str
    seconds: float  # in the compiler
    registers: int
    shared: int  # bytes
    local: int  # bytes
    spilled: int  # registers; for NVIDIA, instructions that spill
    instructions: int
    inexact: set[str]  # matches of the patterns that change bits
    shared_by_warps: str | None  # tensor of which two warps hold the same element, if that is a fault

    @property
    def function(self) -> str:
        return self.name.split("<")[0]

    def faults(self) -> Iterator[str]:
        if (self.local or self.spilled) and not self.name.startswith(tuple(MAY_USE_LOCAL_MEMORY)):
            yield f"{self.local} bytes of local memory, {self.spilled} registers spilled"
        if self.shared > MOST_SHARED[self.backend] and not self.name.startswith(tuple(MAY_USE_MORE_SHARED)):
            yield f"{self.shared} bytes of shared memory, more than {MOST_SHARED[self.backend]}"
        if self.inexact:
            yield f"changes bits: {', '.join(sorted(self.inexact))}"
        if self.shared_by_warps:
            yield f"works in place, but two warps hold the same element of {self.shared_by_warps}"


# ---- calls of programs ----


def whiten(preset: str, sample: Sample, dtype: torch.dtype) -> None:
    operators.whiten(torch.zeros(1, *sample[:3], dtype=dtype), resolve_preset(preset, sample, 1e-4))


def project_2os(num_chunks: int, chunk_size: int, dtype: torch.dtype) -> None:
    table = torch.zeros(chunk_size, num_chunks, dtype=dtype).t()
    operators.project_2os(torch.zeros(1, num_chunks * chunk_size, dtype=dtype), table, table)


def project_tile_stats(tile: tuple[int, int], height: int, width: int, dtype: torch.dtype) -> None:
    operators.project_tile_stats(torch.zeros(1, 16, height, width, dtype=dtype), tile, (4, 16), 1e-4)


def butterfly(tile: tuple[int, int], steps: int, height: int, width: int, dtype: torch.dtype) -> None:
    for inverse in (False, True):
        operators.butterfly(torch.zeros(1, 16, height, width, dtype=dtype), tile, steps, inverse)


def hadamard_transform(size: int, dtype: torch.dtype) -> None:
    operators.hadamard_transform(torch.zeros(16, size, dtype=dtype), size**-0.5)


def compact_fourier(size: int, dtype: torch.dtype) -> None:
    for inverse in (False, True):
        operators.compact_fourier(torch.zeros(1, size, dtype=dtype), inverse)


def project_wgnc(size: int, block_size: int, dtype: torch.dtype) -> None:
    operators.project_wgnc(torch.zeros(1, size, dtype=dtype), block_size)
    operators.project_wgnc_blocks(torch.zeros(1, size // 2, dtype=dtype.to_complex()), block_size)


FLUX, WAN = Sample(16, 64, 64), Sample(16 * 21, 60, 104)
FIRST_CALL = partial(whiten, "flux", FLUX, torch.float32)
FEW_CALLS = [
    partial(whiten, "flux", FLUX, torch.float64),
    partial(compact_fourier, WAN.size, torch.float32),
    *(
        partial(project_wgnc, size, 16, dtype)
        for size in (FLUX.size, WAN.size)
        for dtype in (torch.float32, torch.float64)
    ),
]
ALL_CALLS = [
    *FEW_CALLS,
    partial(whiten, "wan", WAN, torch.float32),
    partial(project_tile_stats, (128, 128), 128, 128, torch.float32),
    partial(project_wgnc, FLUX.size, MOST_BLOCK_COEFFICIENTS, torch.float32),
    *(
        partial(*call, dtype)
        for dtype in (torch.float32, torch.float64)
        for call in (
            *((project_2os, FLUX.size // size, size) for size in (1, 4, 16, 64)),
            *((project_2os, 16 * FLUX.size // size, size) for size in (4, 16)),  # many columns in a program
            (project_2os, 10, 5000),
            (project_2os, 100, 500),
            (project_tile_stats, (4, 4), 64, 64),
            (project_tile_stats, (12, 8), 60, 104),
            (project_tile_stats, (3, 5), 60, 60),
            (project_tile_stats, (64, 64), 64, 64),
            (butterfly, (64, 64), 12, 64, 64),
            (butterfly, (8, 8), 6, 64, 64),
            (butterfly, (60, 104), 13, 60, 104),
            (butterfly, (256, 256), 16, 256, 256),
            (hadamard_transform, 4096),
            (hadamard_transform, 65536),
            (project_wgnc, FLUX.size, 8),
            (project_wgnc, 64_000, 100),
        )
    ),
]


def empty_table(num_chunks: int, chunk_size: int, alpha: float, reference: Any, *of: Any) -> Table:
    """Replace `cached_table`: no kernel depends on the numbers."""
    table = torch.zeros(chunk_size, num_chunks, dtype=of[0]).t()
    return Table(table, table, True)


# ---- compilation and examination ----

_run = JITFunction.run


def compile_only(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
    """Replace `JITFunction.run`: compile, and launch nothing."""
    _run(kernel, *args, grid=grid, warmup=True, **options)


def driver_of(target: GPUTarget) -> SimpleNamespace:
    """Stand-in for Triton's driver. Its device is the target, because Triton keeps kernels by device."""
    return SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: target,
        get_current_stream=lambda device: 0,
    )


def compile_for(target: GPUTarget, calls: list[Callable[[], None]]) -> tuple[list[Kernel], list[str]]:
    """Compile the kernels that the calls need. Return them and the errors."""
    compiled, complaints = [], []

    def listener(**kernel: Any) -> None:
        compiled.append(kernel)

    triton.runtime.driver.set_active(driver_of(target))
    with mock.patch.object(triton.knobs.compilation, "listener", listener):
        for call in calls:
            try:
                call()
            except Exception as error:
                arguments = ", ".join(map(str, call.args))
                complaints.append(f"{call.func.__name__}({arguments}): {type(error).__name__}: {error}")
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda kernel: examine(**kernel), compiled)), complaints


def examine(
    src: Any, metadata: dict[str, Any], metadata_group: dict[str, str], times: Any, cache_hit: bool
) -> Kernel:
    """Examine a kernel that Triton's compilation listener receives."""
    if cache_hit:
        raise RuntimeError(f"{src.name} was not compiled, but found in a cache")
    backend = metadata["target"].backend
    path = {Path(file).suffix: Path(file) for file in metadata_group.values()}
    if backend == "cuda":
        assembly, code = path[".ptx"].read_text(), tool("nvdisasm", "--print-code", path[".cubin"])
        usage = tool("cuobjdump", "--dump-resource-usage", path[".cubin"])
        registers, *local = (
            int(re.search(rf"\b{what}:(\d+)", usage)[1]) for what in ("REG", "STACK", "LOCAL")
        )
        resources = {
            "registers": registers,
            "local": sum(local),
            "spilled": len(re.findall(r"\bSTL\b", code)),
        }
        instructions = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/ ", code, re.MULTILINE)
    else:
        assembly = code = path[".amdgcn"].read_text()
        keys = ("vgpr_count", "private_segment_fixed_size", "vgpr_spill_count", "sgpr_spill_count")
        registers, local, *spilled = (int(re.search(rf"\.{key}: +(\d+)", code)[1]) for key in keys)
        resources = {"registers": registers, "local": local, "spilled": sum(spilled)}
        instructions = re.findall(r"^\t[a-z]", code, re.MULTILINE)
    inexact = LENIENT.findall(path[".llir"].read_text()) + INEXACT[backend].findall(assembly)
    if metadata["enable_fp_fusion"]:
        inexact.append("fusion is enabled")
    ttgir, name = path[".ttgir"].read_text(), name_of(src, metadata["num_warps"])
    if not IN_STEPS.search(ttgir):
        inexact += FUSED[backend].findall(code)
    return Kernel(
        name=name,
        backend=backend,
        seconds=times.total / 1e6,
        shared=metadata["shared"],
        instructions=len(instructions),
        inexact=set(inexact),
        shared_by_warps=shared_by_warps(ttgir) if IN_PLACE in name else None,
        **resources,
    )


def name_of(source: Any, warps: int) -> str:
    """Return the kernel's name with the dtype of its first argument, its numeric constants, and its true
    flags.
    """
    names = {source.fn.arg_names[place]: value for (place,), value in source.constants.items()}
    constants = [
        key if value is True else f"{key}={value}"
        for key, value in names.items()
        if key.isupper() and value is not False and not isinstance(value, float)
    ]
    dtype = next(iter(source.signature.values())).removeprefix("*")
    return f"{source.name}<{', '.join([dtype, *constants, f'{warps} warps'])}>"


def tool(name: str, *arguments: str | Path) -> str:
    """Return the output of one of NVIDIA's tools that Triton bundles."""
    path = getattr(triton.knobs.nvidia, name).path
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def main() -> int:
    if triton.knobs.runtime.interpret:
        sys.exit("TRITON_INTERPRET is set: nothing would be compiled")
    faults = []
    for label in sys.argv[1:] or TARGETS:
        target = TARGETS[label]
        kernels, complaints = compile_for(target, [FIRST_CALL])
        seconds = sum(kernel.seconds for kernel in kernels)
        if seconds > MOST_SECONDS:
            complaints.append(
                f"{seconds:.1f} s in the compiler for the first call, more than {MOST_SECONDS:.0f}"
            )
        more_kernels, more_complaints = compile_for(target, ALL_CALLS if label == IN_FULL else FEW_CALLS)
        kernels, complaints = (
            sorted([*kernels, *more_kernels], key=attrgetter("name")),
            complaints + more_complaints,
        )
        print(
            f"\n{label}, {triton.__version__}: {seconds:.1f} s in the compiler for the first call of whiten"
        )
        for kernel in kernels:
            local = (
                f", {kernel.local} bytes of local memory, {kernel.spilled} spilled" if kernel.local else ""
            )
            print(
                f"  {kernel.registers:3} registers, {kernel.shared:5} bytes shared{local}, "
                f"{kernel.instructions:4} instructions, {kernel.seconds:4.1f} s  {kernel.name}"
            )
        compiled = {kernel.function for kernel in kernels}
        complaints += [f"{name} was not compiled" for name in LAUNCH_TABLE if name not in compiled]
        complaints += [f"{kernel.name}: {fault}" for kernel in kernels for fault in kernel.faults()]
        if not any(IN_PLACE in kernel.name for kernel in kernels):
            complaints.append("no kernel that works in place was compiled")
        faults += [f"{label}: {complaint}" for complaint in complaints]
    print("\n" + ("\n".join(faults) or "no fault"))
    return int(bool(faults))


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(tables, "cached_table", empty_table),
        mock.patch.dict("os.environ", TRITON_CACHE_DIR=cache),
    ):
        sys.exit(main())
