"""Build the operator libraries: `_C`, the CPU kernels, and `_C_cuda`, the CUDA kernels.

Both use PyTorch's stable ABI and no Python API, so one build serves torch >= 2.11 and Python >= 3.10. A
library that cannot be built is left out with a warning; without `_C` the package runs on its pure-PyTorch
reference. Flags, sources, instruction-set variants and CUDA architectures, and the reasons for them, are in
csrc/build.json.

`_C_cuda` is built if torch is a CUDA build and an nvcc of the same CUDA major version is found in CUDA_HOME,
CUDA_PATH, the PATH or /usr/local/cuda. No GPU is needed. Environment variables:
    FORCE_CUDA: 1 builds `_C_cuda` against any torch; 0 does not build it.
    TORCH_CUDA_ARCH_LIST: CUDA architectures, as in PyTorch: "8.0;9.0+PTX".
    NOISETILT_CUDA_DEBUG: 1 makes the debug build of `_C_cuda` (docs/cuda.md).
    NVCC_CCBIN: host compiler of nvcc (default: the C++ compiler that builds `_C`).
    MAX_JOBS: number of files compiled at once (default and maximum: as cores and memory allow).
"""

import json
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
        "noisetilt-kernels is built against the installed torch, but `import torch` fails.\n"
        "Install torch >= 2.11, then run: pip install --no-build-isolation ."
    )

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
BUILD_FACTS = CSRC / "build.json"
FACTS = json.loads(BUILD_FACTS.read_text(encoding="utf-8"))

TORCH = Path(torch.__file__).parent
TORCH_FLAGS = [
    f"-DTORCH_TARGET_VERSION={FACTS['torch']['target_version']}",
    *(
        str(argument)
        for folder in FACTS["torch"]["include_folders"]
        for argument in ("-isystem", TORCH / folder)
    ),
]
TORCH_LIBRARIES = [f"-L{TORCH / 'lib'}", *(f"-l{name}" for name in FACTS["torch"]["libraries"])]

FLAGS = FACTS["cpu"]["flags"]
PROCESSOR = platform.machine().lower().replace("amd64", "x86_64")
VARIANTS = {
    variant["name"]: variant["flags"]
    for variant in FACTS["cpu"]["variants"]
    if variant.get("processor", PROCESSOR) == PROCESSOR
}

CUDA_DEBUG = os.environ.get("NOISETILT_CUDA_DEBUG") == "1"
NVCC_FLAGS = FACTS["cuda"]["flags"] + (FACTS["cuda"]["debug_flags"] if CUDA_DEBUG else [])
NVCC_HOST_FLAGS = FACTS["cuda"]["host_flags"]


def find_nvcc() -> str | None:
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    on_path = shutil.which("nvcc")
    candidates = [*(f"{root}/bin/nvcc" for root in roots if root), on_path, "/usr/local/cuda/bin/nvcc"]
    return next((nvcc for nvcc in candidates if nvcc and os.access(nvcc, os.X_OK)), None)


def nvcc_version(nvcc: str) -> tuple[int, ...]:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"\bV(\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        raise CompileError(f"{nvcc} --version prints no version such as V12.8.61, but: {text!r}")
    return tuple(map(int, match.groups()))


def architectures(version: tuple[int, ...]) -> list[str]:
    """Return the architectures of TORCH_CUDA_ARCH_LIST; by default, all in build.json that nvcc supports.

    An architecture is written as in PyTorch: "9.0", or "9.0+PTX" to include PTX.
    """
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if not listed:
        oldest, *newer = (
            arch["name"]
            for arch in FACTS["cuda"]["architectures"]
            if version >= tuple(map(int, arch.get("nvcc", "0").split(".")))
        )
        return [f"{oldest}+PTX", *newer]
    named = FACTS["cuda"]["named_architectures"]
    names = re.split("[ ;,]+", listed.strip(" ;,"))
    found = [arch for name in names for arch in named.get(name, name).split(";")]
    for arch in found:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            raise CompileError(
                f"TORCH_CUDA_ARCH_LIST={listed!r}: {arch!r} is not an architecture; "
                "write for example 8.0;9.0+PTX"
            )
    # 9.0a becomes 9.0: the kernels use no feature that only one GPU model has.
    found = [re.sub("[af]", "", arch) for arch in found]
    oldest = FACTS["cuda"]["architectures"][0]["name"]
    supported = [arch for arch in found if float(arch.removesuffix("+PTX")) >= float(oldest)]
    if not supported:
        raise CompileError(
            f"TORCH_CUDA_ARCH_LIST={listed!r} has no architecture that the kernels support: {oldest} or newer"
        )
    if supported != found:
        print(
            f"noisetilt: TORCH_CUDA_ARCH_LIST={listed!r}: the kernels support {oldest} and newer; "
            f"building for {', '.join(supported)}",
            file=sys.stderr,
        )
    return supported


def gencode(arch: str) -> list[str]:
    """Return the nvcc options for one architecture."""
    number = arch.removesuffix("+PTX").replace(".", "")
    options = [f"-gencode=arch=compute_{number},code=sm_{number}"]
    if arch.endswith("+PTX"):
        options.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return options


def parallel_jobs() -> int:
    """Return how many compilers may run at once: one per core, with 2 GB of memory each, at most MAX_JOBS."""
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        available = re.search(r"^MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        jobs = min(jobs, int(available[1]) // (2 << 20)) if available else jobs
    except OSError:
        pass  # not Linux
    return max(1, min(jobs, int(os.environ.get("MAX_JOBS") or jobs)))


class BuildLibraries(build_ext):
    """Compile sources in parallel and link them. A library that fails is left out, with a warning."""

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        library.unlink(missing_ok=True)  # if this build fails, no earlier one may take its place
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
        jobs += [(f"csrc/cpu/{name}.cpp", name, [*command, *defines]) for name in FACTS["cpu"]["sources"]]
        for variant, flags in VARIANTS.items():
            variant_command = [*command, *flags, f"-DNOISETILT_VARIANT={variant}"]
            jobs += [
                (f"csrc/cpu/{name}.cpp", f"{name}.{variant}", variant_command)
                for name in FACTS["cpu"]["variant_sources"]
            ]
        objects = self.compile_all(jobs, "cpu", f"objects-{platform.machine()}")
        self.spawn([*compiler, "-shared", "-pthread", *objects, *TORCH_LIBRARIES, "-o", str(library)])

    def build_cuda(self, library: Path) -> None:
        force = os.environ.get("FORCE_CUDA")
        nvcc = find_nvcc()
        if force == "0" or (torch.version.cuda is None and force != "1"):
            return
        if nvcc is None:
            raise CompileError("found no nvcc in CUDA_HOME, CUDA_PATH, the PATH or /usr/local/cuda")
        version = nvcc_version(nvcc)
        if force != "1" and str(version[0]) != torch.version.cuda.split(".")[0]:
            raise CompileError(
                f"{nvcc} is CUDA {version[0]}.{version[1]}, but torch was built for {torch.version.cuda}; "
                "set CUDA_HOME to a CUDA of the same major version, or FORCE_CUDA=1"
            )
        archs = architectures(version)

        # nvcc also compiles the binding and links, because it knows its own headers and runtime library. The
        # runtime is linked statically: the shared one that comes with torch may be older than this nvcc. Both
        # runtimes use the same context of the device.
        host_flags = ["-Xcompiler=" + ",".join(NVCC_HOST_FLAGS), f"-I{CSRC}"]
        if "NVCC_CCBIN" not in os.environ:
            host_flags.append(f"-ccbin={self.compiler.compiler_cxx[0]}")
        command = [nvcc, *NVCC_FLAGS, *host_flags]
        kernel_command = [*command, *(option for arch in archs for option in gencode(arch))]
        binding_flags = [
            *TORCH_FLAGS,
            "-DUSE_CUDA",  # makes torch's headers declare the functions of its CUDA builds
            f'-DNOISETILT_NVCC_VERSION="{".".join(map(str, version))}"',
            f'-DNOISETILT_CUDA_FLAGS="{" ".join(NVCC_FLAGS)}"',
            f'-DNOISETILT_CUDA_ARCHITECTURES="{" ".join(archs)}"',
        ]
        jobs = [
            (f"csrc/cuda/{source.name}", source.stem, kernel_command)
            for source in sorted(CSRC.glob("cuda/*.cu"))
        ]
        jobs.append(("csrc/cuda_ops.cpp", "cuda_ops", [*command, *binding_flags]))
        variant = "cuda-debug" if CUDA_DEBUG else "cuda"
        kept = "-".join([f"objects-{platform.machine()}-{variant}", *map(str, version), *archs])
        objects = self.compile_all(jobs, "cuda", kept)
        linker = "-Xlinker=" + ",".join(FACTS["cuda"]["linker_flags"])
        self.spawn([*command, "-shared", *objects, linker, *TORCH_LIBRARIES, "-o", str(library)])

    def copy_extensions_to_source(self) -> None:
        for library in (ROOT / "noisetilt_kernels").glob("_C*.so"):
            library.unlink()  # otherwise a library that is no longer built would stay in use
        super().copy_extensions_to_source()

    def compile_all(self, jobs: list[tuple[str, str, list[str]]], folder: str, kept: str) -> list[str]:
        """Compile each (source, name, command) to build/<kept>/<name>.o; return the objects.

        Objects that are up to date are kept.
        """
        temp = ROOT / "build" / kept
        temp.mkdir(parents=True, exist_ok=True)
        headers = [
            *CSRC.glob("*.h"),
            *CSRC.glob(f"{folder}/*.*h"),
            ROOT / "noisetilt_kernels" / "schemas.def",
        ]
        newest_header = max(header.stat().st_mtime for header in [*headers, BUILD_FACTS, Path(__file__)])

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
