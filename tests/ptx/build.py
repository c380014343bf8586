"""Build of the interpreter with g++ and ninja, and of the CUDA kernels to PTX with nvcc, in build/ptx."""

import fcntl
import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "ptx"
BUILD = ROOT / "build" / "ptx"

# -fwrapv: integers of a GPU wrap around. -march=native: 32 lanes at once; nothing is fused.
FLAGS = (
    "-std=c++17 -O3 -march=native -ffp-contract=off -fwrapv -fPIC -fvisibility=hidden -Wall -Wextra "
    "-Wno-missing-field-initializers"
)
INTERPRETER = ("text", "machine", "instructions")
# name: sources
TARGETS = {"interpreter": ("binding", *INTERPRETER)}


def build(target: str) -> Path:
    """Build one of TARGETS if it is out of date, and return its path.

    Raises:
        RuntimeError: the build fails.
    """
    includes = [pybind11.get_include(), sysconfig.get_path("include"), sysconfig.get_path("platinclude")]
    lines = [
        f"flags = {FLAGS} -I {HERE} " + " ".join(f"-isystem {path}" for path in includes),
        "rule compile",
        "  command = g++ $flags -MD -MF $out.d -c $in -o $out",
        "  deps = gcc",
        "  depfile = $out.d",
        "rule link",
        "  command = g++ -shared $in -o $out",
        *(f"build {source.stem}.o: compile {source}" for source in HERE.glob("*.cpp")),
        *(
            f"build {name}.so: link {' '.join(f'{source}.o' for source in sources)}"
            for name, sources in TARGETS.items()
        ),
    ]
    BUILD.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ninja", "-C", str(BUILD), f"{target}.so"]
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may want to build
        (BUILD / "build.ninja").write_text("\n".join(lines) + "\n")
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"building {target} failed:\n{result.stdout}{result.stderr}")
    return BUILD / f"{target}.so"


def load(name: str) -> ModuleType:
    """Return the module of one of TARGETS; it is built if it is out of date. Same errors as `build`."""
    spec = importlib.util.spec_from_file_location(name, build(name))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
