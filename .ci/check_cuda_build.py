"""Compile the CUDA kernels and check their machine code. Needs no GPU. Without nvcc nothing is checked.

For each of ARCHITECTURES: no warning; no spilled register and no local memory; registers within the budget;
no fused multiply-add, which would change bits; 16-byte loads in the kernels that should have them. Of the
debug build one source is compiled, the only one that differs, for one architecture.
"""

import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("8.0", "9.0", "10.0")  # one of each generation in csrc/build.json, which saves time
DEBUG_SOURCE, DEBUG_ARCHITECTURE = "whitening.cu", "9.0"

# Registers of a thread, and exceptions from the rules, by kernel.
REGISTERS = 128
REGISTER_FILE = 65_536  # registers of a multiprocessor
MOST_THREADS = 1024  # of a block
MORE_REGISTERS = {  # a thread holds 16 complex numbers
    "fft_columns_kernel": 255,
    "fft_to_spectrum_kernel": 255,
    "fft_from_spectrum_kernel": 255,
    "project_wgnc_kernel": 255,
}
MAY_USE_LOCAL_MEMORY = {
    "project_kernel": "registers saved around calls; the functions called have no local memory",
    "butterfly_kernel<float, 4": "rows of 32,768 values",
    "butterfly_kernel<Half, 4": "rows of 32,768 values",
    "butterfly_kernel<BFloat16, 4": "rows of 32,768 values",
    "butterfly_kernel<double": "a few bytes in one instantiation",
    "project_wgnc_blocks_kernel": "not meant to be fast",
}
LOADS_16_BYTES = ("butterfly_kernel<float", "butterfly_kernel<double")

build = SimpleNamespace(**runpy.run_path(str(ROOT / "setup.py")))
assert {arch["name"] for arch in build.FACTS["cuda"]["architectures"]}.issuperset(ARCHITECTURES)


@dataclass
class Kernel:
    """Measures of a kernel: from the report of ptxas, from its PTX, and from its machine code."""

    name: str  # as in the source, with template arguments
    registers: int
    stack: int
    spilled: int
    called_local: int  # bytes of local memory of functions that it calls, and bytes that they spill to it
    fused: int  # multiply-adds in the PTX
    wide_loads: int  # loads of 16 bytes in the machine code
    threads: int  # in the largest block that it is compiled for
    traps: int  # places in the PTX that end it with an error

    @property
    def function(self) -> str:
        return self.name.split("<")[0]

    def faults(self) -> list[str]:
        found = []
        budget = MORE_REGISTERS.get(self.function, REGISTERS)
        if self.registers > budget:
            found.append(f"{self.registers} registers, more than {budget}")
        if (self.stack or self.spilled) and not self.name.startswith(tuple(MAY_USE_LOCAL_MEMORY)):
            found.append(f"{self.stack} bytes of local memory, {self.spilled} bytes spilled")
        if self.called_local:
            found.append(f"{self.called_local} bytes of local memory in functions that it calls")
        if self.fused:
            found.append("fused multiply-adds")
        if self.traps:
            found.append("a check of the debug build")
        if self.name.startswith(LOADS_16_BYTES) and not self.wide_loads:
            found.append("no 16-byte load")
        return found


def compile_one(
    nvcc: str, nvdisasm: str, source: Path, arch: str, flags: Sequence[str] = ()
) -> tuple[list[Kernel], str]:
    """Return the kernels of a source, and nvcc's output if it failed."""
    with tempfile.TemporaryDirectory() as scratch:
        cubin = Path(scratch) / "kernels.cubin"
        command = [
            nvcc,
            *build.NVCC_FLAGS,
            *flags,
            f"-Xcompiler={','.join(build.NVCC_HOST_FLAGS)}",
            f"-I{build.CSRC}",
        ]
        command += ["--Werror=all-warnings", f"-arch=sm_{arch.replace('.', '')}", "-Xptxas=-v"]
        command += ["--keep", f"--keep-dir={scratch}", "-cubin", str(source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            return [], done.stdout + done.stderr
        (ptx,) = Path(scratch).glob("*.ptx")
        return kernels_of(done.stderr, ptx.read_text(), disassemble(nvdisasm, cubin)), ""


def faults_of_debug_build(nvcc: str, nvdisasm: str) -> list[str]:
    """Return what is wrong with the debug build: its kernels must leave half of the registers free."""
    what = f"{DEBUG_SOURCE}, {DEBUG_ARCHITECTURE}, debug build"
    source, flags = build.CSRC / "cuda" / DEBUG_SOURCE, build.FACTS["cuda"]["debug_flags"]
    kernels, complaint = compile_one(nvcc, nvdisasm, source, DEBUG_ARCHITECTURE, flags)
    found = [complaint] if complaint else []
    print(f"\n{what}")
    for kernel in kernels:
        print(
            f"  {kernel.registers:3} registers, {kernel.threads} threads, {kernel.traps} traps  {kernel.name}"
        )
        if 2 * kernel.registers * kernel.threads > REGISTER_FILE:
            found.append(f"{kernel.name}: more than half of the registers of a multiprocessor")
        if not kernel.traps:
            found.append(f"{kernel.name}: no barrier gives up")
    return [f"{what}: {fault}" for fault in found]


def disassemble(nvdisasm: str, cubin: Path) -> str:
    return subprocess.run(
        [nvdisasm, "--print-code", cubin], capture_output=True, text=True, check=True
    ).stdout


def kernels_of(report: str, ptx: str, code: str) -> list[Kernel]:
    """Return the kernels found in the report of `ptxas -v`, in the PTX and in the machine code."""
    memory = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
    reports = parts(r"Compiling entry function '(\w+)'", report)
    bodies = parts(r"^(?:\.visible )?\.entry (\w+)\(", ptx)  # each with the functions that follow it
    before_all = ptx.split(".entry", 1)[0].count("fma.")
    codes = parts(r"^\.text\.(\w+):$", code)
    found = []
    for mangled, text in reports.items():
        (stack, *spilled), *called = [tuple(map(int, match)) for match in memory.findall(text)]
        registers = int(re.search(r"Used (\d+) registers", text)[1])
        name = subprocess.run(
            ["c++filt", "--no-params", mangled], capture_output=True, text=True, check=True
        ).stdout
        name = re.sub(r"\(anonymous namespace\)::|noisetilt::|cuda::", "", name.strip())
        fused, wide = (
            bodies[mangled].count("fma.") + before_all,
            len(re.findall(r"\bLDG\.\S*128", codes[mangled])),
        )
        most = re.search(r"\.maxntid (\d+)", bodies[mangled])
        threads = int(most[1]) if most else MOST_THREADS
        traps = len(re.findall(r"\btrap;", ptx))  # also those of functions
        # A function that stores nothing in local memory can only load what its caller has put there.
        local = stack, sum(spilled), sum(frame + stores for frame, stores, _ in called)
        found.append(Kernel(name, registers, *local, fused, wide, threads, traps))
    return sorted(found, key=lambda kernel: kernel.name)


def parts(heading: str, text: str) -> dict[str, str]:
    """Return the parts of a text between headings, by the name in the heading."""
    _, *pieces = re.split(heading, text, flags=re.MULTILINE)
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


def find_nvdisasm(nvcc: str) -> str:
    beside = Path(nvcc).with_name("nvdisasm")
    if beside.exists():
        return str(beside)
    files = metadata.files("nvidia-cuda-nvdisasm") or []
    return next(str(file.locate()) for file in files if file.name == "nvdisasm")


def main() -> int:
    nvcc = build.find_nvcc()
    if nvcc is None:
        print("nvcc was not found: the CUDA kernels are not checked")
        return 0
    nvdisasm = find_nvdisasm(nvcc)
    jobs = [(source, arch) for source in sorted(ROOT.glob("csrc/cuda/*.cu")) for arch in ARCHITECTURES]
    with ThreadPoolExecutor(build.parallel_jobs()) as pool:
        debug = pool.submit(faults_of_debug_build, nvcc, nvdisasm)
        results = list(pool.map(lambda job: compile_one(nvcc, nvdisasm, *job), jobs))
    faults = debug.result()
    for (source, arch), (kernels, complaint) in zip(jobs, results, strict=True):
        print(f"\n{source.name}, {arch}")
        for kernel in kernels:
            local = (
                f", {kernel.stack} bytes of local memory, {kernel.spilled} spilled" if kernel.stack else ""
            )
            wide = f", {kernel.wide_loads} 16-byte loads" if kernel.wide_loads else ""
            print(f"  {kernel.registers:3} registers{local}{wide}  {kernel.name}")
        what = [complaint] if complaint else []
        what += [f"{kernel.name}: {fault}" for kernel in kernels for fault in kernel.faults()]
        faults += [f"{source.name}, {arch}: {fault}" for fault in what]
    print("\n" + ("\n".join(faults) or f"{len(jobs) + 1} compilations, no fault"))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
