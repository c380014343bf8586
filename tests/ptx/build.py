"""Build of the interpreter with g++ and ninja, and of the CUDA kernels to PTX with nvcc, in build/ptx."""

import runpy
import sysconfig
from pathlib import Path
from types import ModuleType, SimpleNamespace

import native_build
import pybind11

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "ptx"
BUILD = ROOT / "build" / "ptx"
MODULE_CPP = ROOT / "tests" / "cuda_emulation" / "module.cpp"
CU = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))

setup = SimpleNamespace(**runpy.run_path(str(ROOT / "setup.py")))
NVCC = setup.find_nvcc()
"""Path of nvcc, or None if it is not installed."""

# -fwrapv: integers of a GPU wrap around. -march=native: 32 lanes at once; nothing is fused.
FLAGS = (
    "-std=c++17 -O3 -march=native -ffp-contract=off -fwrapv -fPIC -fvisibility=hidden -Wall -Wextra "
    "-Wno-missing-field-initializers"
)
INTERPRETER = ("text", "assembly", "machine")
CAPABILITIES = (80, 90)
TARGETS = ("interpreter", "clusters", *(f"kernels_sm_{capability}" for capability in CAPABILITIES))


def build(target: str) -> Path:
    """Build one of TARGETS if it is out of date, and return its path. All but the first need nvcc.

    Raises:
        RuntimeError: the build fails.
    """
    folders = [pybind11.get_include(), sysconfig.get_path("include"), sysconfig.get_path("platinclude")]
    includes = " ".join(f"-isystem {folder}" for folder in folders)
    interpreter = " ".join(f"{source}.o" for source in INTERPRETER)
    lines = [
        f"flags = {FLAGS} {includes}",
        "rule compile",
        "  command = g++ $flags -MD -MF $out.d -c $in -o $out",
        "  deps = gcc",
        "  depfile = $out.d",
        "rule link",
        "  command = g++ -shared $in -o $out",
        *(f"build {source}.o: compile {HERE / source}.cpp" for source in ("binding", *INTERPRETER)),
        f"build interpreter.so: link binding.o {interpreter}",
    ]
    if NVCC is not None:
        lines += kernel_lines(interpreter, includes)
    return native_build.build(BUILD, lines, f"{target}.so")


def kernel_lines(interpreter: str, includes: str) -> list[str]:
    """Lines for ninja: the CUDA kernels, as PTX within their host code, over the stand-in of the runtime."""
    host_flags = ",".join(setup.NVCC_HOST_FLAGS)
    lines = [
        "rule nvcc",
        f"  command = {NVCC} {' '.join(setup.NVCC_FLAGS)} -Xcompiler={host_flags} --compress-mode=none $more "
        f"-I {ROOT / 'csrc'} -MD -MF $out.d -c $in -o $out",
        "  deps = gcc",
        "  depfile = $out.d",
        f"build runtime.o: nvcc {HERE / 'cuda' / 'runtime.cpp'}",  # by nvcc, which knows its headers
    ]

    def flags_of_code(capability: int) -> str:
        return f"-gencode=arch=compute_{capability},code=compute_{capability}"

    def flags_of_module(name: str, capability: int) -> str:
        return f"-I {HERE / 'cuda'} {includes} -DMODULE={name} -DCAPABILITY={capability}"

    lines += [
        f"build clusters.o: nvcc {HERE / 'cuda' / 'clusters.cu'}",
        f"  more = {flags_of_code(90)} {flags_of_module('clusters', 90)}",
        f"build clusters.so: link clusters.o runtime.o {interpreter}",
    ]
    for capability in CAPABILITIES:
        name = f"kernels_sm_{capability}"
        objects = [f"{name}.module.o", "runtime.o"]
        lines += [
            f"build {objects[0]}: nvcc {MODULE_CPP}",
            f"  more = {flags_of_module(name, capability)}",
        ]
        for source in CU:
            objects.append(f"{name}.{source.stem}.o")
            lines += [f"build {objects[-1]}: nvcc {source}", f"  more = {flags_of_code(capability)}"]
        lines.append(f"build {name}.so: link {' '.join(objects)} {interpreter}")
    return lines


def load(name: str) -> ModuleType:
    """Return the module of one of TARGETS; it is built if it is out of date. Same errors as `build`."""
    return native_build.load(build(name))
