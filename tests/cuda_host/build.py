"""Build of the CUDA library's host code with g++ and ninja, in build/cuda_host."""

import runpy
from pathlib import Path

import native_build

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "cuda_host"
BUILD = ROOT / "build" / "cuda_host"
LIBRARY = BUILD / "cuda_host.so"

FLAGS = [
    "-x c++ -std=c++17 -O2 -g1 -ffp-contract=off -fPIC -fvisibility=hidden -Wall -Wextra",
    "-Wno-unknown-pragmas -DUSE_CUDA",
    *(f"'-DNOISETILT_{name}=\"\"'" for name in ("NVCC_VERSION", "CUDA_FLAGS", "CUDA_ARCHITECTURES")),
    *(f"-I {folder}" for folder in (HERE, ROOT / "tests" / "cuda_emulation", ROOT / "csrc")),
]


def build() -> Path:
    """Build the library if it is out of date, and return its path.

    Raises:
        RuntimeError: the build fails.
    """
    setup = runpy.run_path(str(ROOT / "setup.py"))
    sources = [HERE / "library.cpp", *sorted((ROOT / "csrc" / "cuda").glob("*.cu"))]
    lines = [
        f"flags = {' '.join([*FLAGS, *setup['TORCH_FLAGS']])}",
        f"libraries = {' '.join(setup['TORCH_LIBRARIES'])}",
        "rule compile",
        "  command = g++ $flags -MD -MF $out.d -c $in -o $out",
        "  deps = gcc",
        "  depfile = $out.d",
        # -Bsymbolic: the functions of PyTorch that library.cpp replaces
        "rule link",
        "  command = g++ -shared -Wl,-Bsymbolic $in $libraries -ldl -o $out",
        *(f"build {source.stem}.o: compile {source}" for source in sources),
        f"build {LIBRARY.name}: link {' '.join(f'{source.stem}.o' for source in sources)}",
    ]
    return native_build.build(BUILD, lines, LIBRARY.name)
