"""Build what a machine with a GPU needs beside the sources, in build/carried: `python -m bench.gpu.prepare`.

    standard/      the libraries `_C` and `_C_cuda`
    any_blocks/    `_C_cuda` whose projection kernel divides a sample between as many blocks as wanted
    debug/         the debug build of `_C_cuda`, for compute-sanitizer (docs/cuda.md)
    radix_sort.so  CUB's sorts, for comparison
    barrier.so     the barrier between blocks alone
    expected.npz   inputs of the operators, and their results by the reference
    tables.npz     confidence tables
    prepared.json  what the above was made from

Needs nvcc, but neither a GPU nor a CUDA build of torch: the libraries use PyTorch's stable ABI. They are
built for TORCH_CUDA_ARCH_LIST (default: this machine's GPU, or 9.0). `--libraries` makes them alone, on a
machine where the carried ones do not load.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from . import CARRIED, ROOT

CPU_LIBRARY, CUDA_LIBRARY = "_C.abi3.so", "_C_cuda.abi3.so"
MANIFEST = "prepared.json"

# The one function of a CUDA build of torch that the CUDA library needs. With it, a CPU build can load it.
FROM_CUDA_TORCH = 'extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }'
LOAD = """
import ctypes, sys, torch
if torch.version.cuda is None:
    ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
torch.ops.load_library(sys.argv[2])
torch.ops.load_library(sys.argv[3])
assert torch._C._dispatch_has_kernel_for_dispatch_key("noisetilt::_project_", "CUDA")
print(f"{sys.argv[3]}: loads,", ", ".join(torch.ops.noisetilt._cuda_build_info().splitlines()))
"""
MOST_CARRIED = 48 << 20  # with the sources less than 64 MiB


def digest_of_sources() -> str:
    """Return a digest of the sources of the libraries and of the expected results."""
    digest = hashlib.sha256()
    sources = [*ROOT.glob("csrc/**/*"), *ROOT.glob("bench/gpu/*.cu"), ROOT / "setup.py"]
    sources += [ROOT / "noisetilt_kernels" / "schemas.def", ROOT / "bench" / "gpu" / "expected.py"]
    sources += ROOT.glob("python_ref/*.py")
    for path in sorted(path for path in sources if path.is_file()):
        digest.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def tree_with(library: str, folder: Path) -> Path:
    """Make a folder that looks like the sources, with the package's libraries from `prepare`. Return it.

    A process that runs in this folder imports the package from there. The sources stay as they are.
    """
    package = folder / "noisetilt_kernels"
    package.mkdir(parents=True)
    for entry in ROOT.iterdir():
        if entry.name != package.name and not entry.name.startswith("."):
            (folder / entry.name).symlink_to(entry)
    for entry in (ROOT / package.name).iterdir():
        if not entry.name.startswith("_C") and entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    (package / CPU_LIBRARY).symlink_to(CARRIED / "standard" / CPU_LIBRARY)
    (package / CUDA_LIBRARY).symlink_to(CARRIED / library / CUDA_LIBRARY)
    return folder


def build_libraries() -> None:
    os.environ["FORCE_CUDA"] = "1"
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", _architecture())
    _build_package(CARRIED / "standard", (CPU_LIBRARY, CUDA_LIBRARY))

    setup = SimpleNamespace(**runpy.run_path(str(ROOT / "setup.py")))
    nvcc = setup.find_nvcc()
    version = setup.nvcc_version(nvcc)
    archs = setup.architectures(version)
    for_gpu = [option for arch in archs for option in setup.gencode(arch)]
    alone = [nvcc, "-std=c++17", "-O3", "-Xcompiler=-fPIC", "-shared", *for_gpu]

    def build_any_blocks() -> None:
        command = [nvcc, *setup.NVCC_FLAGS, f"-Xcompiler={','.join(setup.NVCC_HOST_FLAGS)}"]
        linker = ["-Xlinker=" + ",".join(setup.FACTS["cuda"]["linker_flags"]), *setup.TORCH_LIBRARIES]
        kept = "-".join([f"objects-{platform.machine()}-cuda", *map(str, version), *archs])  # by setup.py
        others = [str(path) for path in (ROOT / "build" / kept).glob("*.o") if path.name != "whitening.o"]
        library = CARRIED / "any_blocks" / CUDA_LIBRARY
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            kernel = f"{scratch}/any_blocks.o"
            _run([*command, *for_gpu, f"-I{setup.CSRC}", "-c", "bench/gpu/any_blocks.cu", "-o", kernel])
            _run([*command, "-shared", kernel, *others, *linker, "-o", str(library)])

    def build_alone(name: str) -> None:
        _run([*alone, f"bench/gpu/{name}.cu", "-o", str(CARRIED / f"{name}.so")])

    jobs: list[Callable[[], None]] = [
        build_any_blocks,
        *(partial(build_alone, name) for name in ("barrier", "radix_sort")),
    ]
    with ThreadPoolExecutor(setup.parallel_jobs()) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()
    _build_package(CARRIED / "debug", (CUDA_LIBRARY,), NOISETILT_CUDA_DEBUG="1")
    manifest = {"sources": digest_of_sources(), "architectures": " ".join(archs)}
    (CARRIED / MANIFEST).write_text(json.dumps(manifest) + "\n")


def _architecture() -> str:
    """Return the compute capability of this machine's GPU, or 9.0 if it has none."""
    import torch

    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    return ".".join(map(str, capability))


def _build_package(folder: Path, libraries: Sequence[str], **environment: str) -> None:
    """Build the package, and copy libraries of it to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folders = [f"--build-{kind}={scratch}" for kind in ("lib", "temp")]
        _run([sys.executable, "setup.py", "-q", "build_ext", *folders], ROOT, **environment)
        for name in libraries:
            shutil.copy(Path(scratch, "noisetilt_kernels", name), folder)


def load_libraries() -> None:
    """Load the CUDA libraries, each in a process: a library that does not load must not travel."""
    with tempfile.TemporaryDirectory() as scratch:
        source, library = Path(scratch, "stream.cpp"), Path(scratch, "stream.so")
        source.write_text(FROM_CUDA_TORCH)
        _run(["g++", "-shared", "-fPIC", str(source), "-o", str(library)])
        for cuda_library in sorted(CARRIED.glob(f"*/{CUDA_LIBRARY}")):
            libraries = library, CARRIED / "standard" / CPU_LIBRARY, cuda_library
            _run([sys.executable, "-c", LOAD, *map(str, libraries)])


def make_expected() -> None:
    """Compute the expected results in a process whose cache of tables is empty, and keep the tables too."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = tree_with("standard", Path(scratch, "tree"))
        _run([sys.executable, "-m", "bench.gpu.expected"], tree, XDG_CACHE_HOME=scratch)


def _run(command: list[str], folder: Path = ROOT, **environment: str) -> None:
    subprocess.run(command, cwd=folder, env={**os.environ, **environment}, check=True)


def needs_of(library: Path) -> str:
    """Return what a library needs of the machine: the newest versions of symbols, and other libraries."""
    text = subprocess.run(["readelf", "-dV", library], capture_output=True, text=True, check=True).stdout
    newest: dict[str, tuple[int, ...]] = {}
    for family, version in re.findall(r"Name: (GLIBC|GLIBCXX|CXXABI)_([\d.]+)", text):
        newest[family] = max(newest.get(family, ()), tuple(map(int, version.split("."))))
    versions = (f"{family} {'.'.join(map(str, version))}" for family, version in sorted(newest.items()))
    return ", ".join([*versions, *re.findall(r"\(NEEDED\).*\[(.*)\]", text)])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("--libraries", action="store_true", help="build the libraries alone")
    options = parser.parse_args()
    start = time.monotonic()
    if not options.libraries:
        shutil.rmtree(CARRIED, ignore_errors=True)
    CARRIED.mkdir(parents=True, exist_ok=True)
    build_libraries()
    load_libraries()
    if not options.libraries:
        make_expected()
    files = sorted(path for path in CARRIED.rglob("*") if path.is_file())
    for path in files:
        needs = f"  needs {needs_of(path)}" if path.suffix == ".so" else ""
        print(f"{path.stat().st_size / 2**20:6.1f} MiB  {path.relative_to(CARRIED)}{needs}")
    size = sum(path.stat().st_size for path in files)
    print(f"{size / 2**20:6.1f} MiB in {CARRIED.relative_to(ROOT)}, {time.monotonic() - start:.0f} s")
    if size > MOST_CARRIED:
        print(f"this is more than {MOST_CARRIED >> 20} MiB")
    return int(size > MOST_CARRIED)


if __name__ == "__main__":
    sys.exit(main())
