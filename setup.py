"""Builds the operator library: the CPU kernels once per instruction-set variant, and their binding to PyTorch.

The library uses PyTorch's stable ABI and no Python API, so one build serves torch >= 2.11 and Python >= 3.10.
Where it cannot be built the package still installs, and runs on its pure-PyTorch reference.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    import torch
except ModuleNotFoundError:
    sys.exit(
        "noisetilt-kernels is built against the torch it will run with, and none is importable here.\n"
        "Install torch >= 2.11 first, then run: pip install --no-build-isolation ."
    )

ROOT = Path(__file__).parent
TORCH = Path(torch.__file__).parent
TORCH_TARGET_VERSION = "0x020b000000000000"  # the stable ABI of torch 2.11

# Bits are part of the contract: no contraction to FMA, no fast-math. Neither of the last two changes a result.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wno-psabi",
]
# Without FMA: given it, g++ 12 forms fused multiply-add-subtracts in spite of -ffp-contract=off, when it vectorises
# straight-line code. AVX-512 brings an FMA of its own, so there that vectoriser is off as well.
VARIANTS: dict[str, list[str]] = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    VARIANTS["x86_64_v3"] = ["-mavx2", "-mbmi", "-mbmi2"]
    VARIANTS["x86_64_v4"] = [
        *VARIANTS["x86_64_v3"],
        *("-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl"),
        *("-mprefer-vector-width=512", "-fno-tree-slp-vectorize"),
    ]

KERNELS = ["order_stats", "tile_stats", "transforms", "wgnc", "whitening"]


class BuildLibrary(build_ext):
    """Compiles every (source, variant) pair in parallel and links them; never fails an installation."""

    def build_extension(self, ext: Extension) -> None:
        defines = ["-DNOISETILT_X86_64"] if "x86_64_v3" in VARIANTS else []
        include = [f"-I{ROOT / 'csrc'}"]
        torch_flags = [
            f"-isystem{TORCH / 'include'}",
            f"-isystem{TORCH / 'include' / 'torch' / 'csrc' / 'api' / 'include'}",
            f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
            f'-DNOISETILT_BUILD_FLAGS="{" ".join(FLAGS)}"',
            f'-DNOISETILT_BUILD_VARIANTS="{" ".join(VARIANTS)}"',
        ]
        jobs = [("csrc/ops.cpp", "ops", torch_flags)]
        jobs += [(f"csrc/cpu/{name}.cpp", name, defines) for name in ("scratch", "twiddles", "variants")]
        for variant, flags in VARIANTS.items():
            variant_flags = [*flags, f"-DNOISETILT_VARIANT={variant}"]
            jobs += [(f"csrc/cpu/{name}.cpp", f"{name}.{variant}", variant_flags) for name in KERNELS]

        temp = ROOT / "build" / f"objects-{platform.machine()}"  # kept, so that an installation compiles what changed
        temp.mkdir(parents=True, exist_ok=True)
        headers = [*ROOT.glob("csrc/**/*.h"), ROOT / "noisetilt_kernels" / "schemas.def", Path(__file__)]
        newest_header = max(header.stat().st_mtime for header in headers)
        compiler = [*self.compiler.compiler_cxx[:1], "-fPIC"]

        def compile_one(job: tuple[str, str, list[str]]) -> str:
            source, name, flags = job
            target = temp / f"{name}.o"
            newest = max(newest_header, (ROOT / source).stat().st_mtime)
            if self.force or not target.exists() or target.stat().st_mtime < newest:
                self.spawn([*compiler, *FLAGS, *include, *flags, "-c", str(ROOT / source), "-o", str(target)])
            return str(target)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, jobs))
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        self.spawn(
            [
                *compiler,
                "-shared",
                *objects,
                f"-L{TORCH / 'lib'}",
                "-ltorch_cpu",
                "-ltorch",
                "-lc10",
                "-o",
                str(library),
            ]
        )


setup(
    ext_modules=[Extension("noisetilt_kernels._C", sources=[], py_limited_api=True, optional=True)],
    cmdclass={"build_ext": BuildLibrary},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
