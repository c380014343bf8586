"""Builds the operator libraries: _C, the CPU kernels once per instruction-set variant, and _C_cuda, the CUDA kernels.

They use PyTorch's stable ABI and no Python API, so one build serves torch >= 2.11 and Python >= 3.10. What cannot be
built is left out: the package still installs, and runs on its pure-PyTorch reference.

_C_cuda is built where there is nvcc (in CUDA_HOME, CUDA_PATH, the PATH or /usr/local/cuda) of the CUDA version that
torch was built for; whether there is a GPU is not asked. Environment variables:
    FORCE_CUDA: 1 builds it against any torch, 0 does not build it.
    TORCH_CUDA_ARCH_LIST: the architectures, as in PyTorch: "8.0;9.0+PTX".
    MAX_JOBS: files compiled at once, if fewer than there are cores and memory for.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

try:
    import torch
except ModuleNotFoundError:
    sys.exit(
        "noisetilt-kernels is built against the torch it will run with, and none is importable here.\n"
        "Install torch >= 2.11 first, then run: pip install --no-build-isolation ."
    )

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
TORCH = Path(torch.__file__).parent
TORCH_FLAGS = [
    "-DTORCH_TARGET_VERSION=0x020b000000000000",  # the stable ABI of torch 2.11
    *("-isystem", str(TORCH / "include")),
    *("-isystem", str(TORCH / "include" / "torch" / "csrc" / "api" / "include")),
]
TORCH_LIBRARIES = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"]

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

# As above; nvcc's division and square root round correctly unless told otherwise.
NVCC_FLAGS = ["-std=c++17", "-O3", "--fmad=false", "-lineinfo"]
NVCC_HOST_FLAGS = ["-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wno-psabi"]
# What PyTorch's names of architectures stand for.
NAMED_ARCHITECTURES = {
    "Turing": "7.5+PTX",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
}

KERNELS = ["order_stats", "tile_stats", "transforms", "wgnc", "whitening"]


def find_nvcc() -> str | None:
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    on_path = shutil.which("nvcc")
    candidates = [*(f"{root}/bin/nvcc" for root in roots if root), on_path, "/usr/local/cuda/bin/nvcc"]
    return next((nvcc for nvcc in candidates if nvcc and os.access(nvcc, os.X_OK)), None)


def nvcc_version(nvcc: str) -> tuple[int, ...]:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"\bV(\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        raise CompileError(f"{nvcc} --version tells no version")
    return tuple(map(int, match.groups()))


def architectures(version: tuple[int, ...]) -> list[str]:
    """Those of TORCH_CUDA_ARCH_LIST, or else what the kernels are tuned for, and PTX for all that is to come."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if not listed:
        blackwell = ["10.0", "12.0"] if version >= (12, 8) else []
        *known, last = ["8.0", "8.6", "8.9", "9.0", *blackwell]
        return [*known, f"{last}+PTX"]
    names = re.split("[ ;,]+", listed.strip(" ;,"))
    found = [arch for name in names for arch in NAMED_ARCHITECTURES.get(name, name).split(";")]
    for arch in found:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            raise CompileError(
                f"TORCH_CUDA_ARCH_LIST={listed!r}: {arch!r} is no architecture; write 8.0;9.0+PTX"
            )
    found = [
        re.sub("[af]", "", arch) for arch in found
    ]  # as in 9.0a: nothing here needs what one model alone has
    served = [arch for arch in found if float(arch.removesuffix("+PTX")) >= 8]
    if served != found:
        print(
            f"noisetilt: of {', '.join(found)} the kernels are built for those from 8.0 on", file=sys.stderr
        )
    if not served:
        raise CompileError(f"TORCH_CUDA_ARCH_LIST={listed!r}: the kernels need 8.0 or newer")
    return served


def gencode(arch: str) -> list[str]:
    """The options of nvcc for one architecture."""
    number = arch.removesuffix("+PTX").replace(".", "")
    options = [f"-gencode=arch=compute_{number},code=sm_{number}"]
    if arch.endswith("+PTX"):
        options.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return options


def parallel_jobs() -> int:
    """How many compilers may run at once: a core and 2 GB each."""
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        available = re.search(r"^MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        jobs = min(jobs, int(available[1]) // (2 << 20)) if available else jobs
    except OSError:
        pass  # not Linux
    return max(1, min(jobs, int(os.environ.get("MAX_JOBS") or jobs)))


class BuildLibraries(build_ext):
    """Compiles sources in parallel and links them; what fails is left out of the installation, with a warning."""

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        library.unlink(missing_ok=True)  # a former build's must not stand in for one that fails
        if ext.name.endswith("._C_cuda"):
            self.build_cuda(library)
        else:
            self.build_cpu(library)

    def build_cpu(self, library: Path) -> None:
        compiler = [*self.compiler.compiler_cxx[:1], "-fPIC"]
        command = [*compiler, *FLAGS, f"-I{CSRC}"]
        defines = ["-DNOISETILT_X86_64"] if "x86_64_v3" in VARIANTS else []
        binding_flags = [
            *TORCH_FLAGS,
            f'-DNOISETILT_BUILD_FLAGS="{" ".join(FLAGS)}"',
            f'-DNOISETILT_BUILD_VARIANTS="{" ".join(VARIANTS)}"',
        ]
        jobs = [("csrc/ops.cpp", "ops", [*command, *binding_flags])]
        jobs += [
            (f"csrc/cpu/{name}.cpp", name, [*command, *defines])
            for name in ("scratch", "twiddles", "variants")
        ]
        for variant, flags in VARIANTS.items():
            variant_command = [*command, *flags, f"-DNOISETILT_VARIANT={variant}"]
            jobs += [(f"csrc/cpu/{name}.cpp", f"{name}.{variant}", variant_command) for name in KERNELS]
        objects = self.compile_all(jobs, "cpu", f"objects-{platform.machine()}")
        self.spawn([*compiler, "-shared", *objects, *TORCH_LIBRARIES, "-o", str(library)])

    def build_cuda(self, library: Path) -> None:
        force = os.environ.get("FORCE_CUDA")
        nvcc = find_nvcc()
        if force == "0" or (torch.version.cuda is None and force != "1"):
            return
        if nvcc is None:
            raise CompileError("no nvcc in CUDA_HOME, CUDA_PATH, the PATH or /usr/local/cuda")
        version = nvcc_version(nvcc)
        if force != "1" and str(version[0]) != torch.version.cuda.split(".")[0]:
            raise CompileError(
                f"{nvcc} is CUDA {version[0]}.{version[1]}, torch was built for {torch.version.cuda}"
            )
        archs = architectures(version)

        # nvcc compiles the binding and links as well, since it knows where its headers and its runtime library are.
        # That is the static one: it is as new as this nvcc, which the shared one that torch brings need not be, and
        # shares the device's context with it all the same.
        host_flags = ["-Xcompiler=" + ",".join(NVCC_HOST_FLAGS), f"-I{CSRC}"]
        if "NVCC_CCBIN" not in os.environ:
            host_flags.append(f"-ccbin={self.compiler.compiler_cxx[0]}")
        command = [nvcc, *NVCC_FLAGS, *host_flags]
        kernel_command = [*command, *(option for arch in archs for option in gencode(arch))]
        binding_flags = [
            *TORCH_FLAGS,
            "-DUSE_CUDA",  # of torch's headers: declares what only its CUDA builds have
            f'-DNOISETILT_NVCC_VERSION="{".".join(map(str, version))}"',
            f'-DNOISETILT_CUDA_FLAGS="{" ".join(NVCC_FLAGS)}"',
            f'-DNOISETILT_CUDA_ARCHITECTURES="{" ".join(archs)}"',
        ]
        jobs = [
            (f"csrc/cuda/{source.name}", source.stem, kernel_command)
            for source in sorted(CSRC.glob("cuda/*.cu"))
        ]
        jobs.append(("csrc/cuda_ops.cpp", "cuda_ops", [*command, *binding_flags]))
        kept = "-".join([f"objects-{platform.machine()}-cuda", *map(str, version), *archs])
        objects = self.compile_all(jobs, "cuda", kept)
        # libtorch brings in libtorch_cuda where there is one, so a CPU build of torch serves to link against as well.
        linker = "-Xlinker=--no-as-needed,--exclude-libs,ALL"
        self.spawn([*command, "-shared", *objects, linker, *TORCH_LIBRARIES, "-o", str(library)])

    def copy_extensions_to_source(self) -> None:
        for library in (ROOT / "noisetilt_kernels").glob("_C*.so"):
            library.unlink()  # or one that is no longer built would stay in use
        super().copy_extensions_to_source()

    def compile_all(self, jobs: list[tuple[str, str, list[str]]], folder: str, kept: str) -> list[str]:
        """Compiles (source, name, command) each to an object, which is kept: an installation compiles what changed."""
        temp = ROOT / "build" / kept
        temp.mkdir(parents=True, exist_ok=True)
        headers = [
            *CSRC.glob("*.h"),
            *CSRC.glob(f"{folder}/*.*h"),
            ROOT / "noisetilt_kernels" / "schemas.def",
        ]
        newest_header = max(header.stat().st_mtime for header in [*headers, Path(__file__)])

        def compile_one(job: tuple[str, str, list[str]]) -> str:
            source, name, command = job
            target = temp / f"{name}.o"
            newest = max(newest_header, (ROOT / source).stat().st_mtime)
            if self.force or not target.exists() or target.stat().st_mtime < newest:
                self.spawn([*command, "-c", str(ROOT / source), "-o", str(target)])
            return str(target)

        with ThreadPoolExecutor(parallel_jobs()) as pool:
            return list(pool.map(compile_one, jobs))


if __name__ == "__main__":
    setup(
        ext_modules=[
            Extension(f"noisetilt_kernels.{name}", sources=[], py_limited_api=True, optional=True)
            for name in ("_C", "_C_cuda")
        ],
        cmdclass={"build_ext": BuildLibraries},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
