"""Build of the emulated kernels and of the toys with g++ and ninja, in build/cuda_emulation."""

import sysconfig
from pathlib import Path
from types import ModuleType

import native_build
import pybind11

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "cuda_emulation"
CSRC = ROOT / "csrc"
KERNELS = CSRC / "cuda"
BUILD = ROOT / "build" / "cuda_emulation"

# Flags of g++, not those of nvcc in csrc/build.json: CUDA code is compiled as C++ here.
# -fvisibility=hidden: otherwise two modules in one process would share the state of the emulated device.
FLAGS = (
    "-x c++ -std=c++17 -O2 -g1 -ffp-contract=off -fPIC -fvisibility=hidden -Wall -Wextra -Wno-unknown-pragmas"
)
# Traced code calls a function of TRACING before every access, in place of ThreadSanitizer's runtime. Without
# -fno-builtin, memcpy and the like would become code that is not traced.
HOOKS = "-DEMULATION_TRACED"
TRACED = (
    f"{HOOKS} -include {HERE / 'traced.h'} -fno-builtin-memcpy -fno-builtin-memmove -fno-builtin-memset"
    " -fsanitize=thread --param tsan-distinguish-volatile=1"
)
TRACING = dict.fromkeys([HERE / f"{name}.cpp" for name in ("tracing", "races", "views")], HOOKS)
MODULE_CPP = HERE / "module.cpp"
CU = sorted(KERNELS.glob("*.cu"))
# name: ({source: flags}, flags of the linker). *_traced find more errors, and are slow.
TARGETS = {
    "plan.so": ({HERE / "plan.cpp": ""}, "-shared"),  # without the emulation
    "toys.so": ({HERE / "toys.cu": ""}, "-shared"),
    "toys_traced.so": ({**TRACING, HERE / "toys.cu": TRACED}, "-shared"),
    "toys_asan": ({HERE / "toys.cu": "-DTOYS_MAIN -fsanitize=address"}, "-fsanitize=address"),
    "debug_barrier.so": ({HERE / "debug_barrier.cu": "-DNOISETILT_CUDA_DEBUG"}, "-shared"),
    "kernels.so": (dict.fromkeys([MODULE_CPP, *CU], ""), "-shared"),
    "kernels_asan.so": (dict.fromkeys([MODULE_CPP, *CU], "-fsanitize=address"), "-shared -fsanitize=address"),
    "kernels_traced.so": ({**TRACING, MODULE_CPP: HOOKS, **dict.fromkeys(CU, TRACED)}, "-shared"),
}
# Faults of Team::sync. For each of them, the toys and the kernels are also built from a copy of csrc.
PLANTS = {
    "no_release": (
        "fetch_add(1, ::cuda::memory_order_release)",
        "fetch_add(1, ::cuda::memory_order_relaxed)",
    ),
    "no_acquire": ("load(::cuda::memory_order_acquire)", "load(::cuda::memory_order_relaxed)"),
}
for fault in PLANTS:
    copied = {BUILD / fault / "cuda" / source.name: TRACED for source in CU}
    TARGETS[f"toys_{fault}.so"] = (
        {**TRACING, HERE / "toys.cu": f"-iquote {BUILD / fault} {TRACED}"},
        "-shared",
    )
    TARGETS[f"kernels_{fault}.so"] = ({**TRACING, MODULE_CPP: HOOKS, **copied}, "-shared")


def plant_all() -> None:
    """Write a copy of csrc for each of PLANTS."""
    for fault in PLANTS:
        plant(fault)


def plant(fault: str) -> None:
    """Write the copy of csrc with one of PLANTS."""
    original, faulty = PLANTS[fault]
    (BUILD / fault / "cuda").mkdir(parents=True, exist_ok=True)
    for source in [*CSRC.glob("*.h"), *KERNELS.iterdir()]:
        text = source.read_text()
        if source.name == "team.cuh":
            assert text.count(original) == 1, f"{source} must contain {original} once"
            text = text.replace(original, faulty)
        copy = BUILD / fault / source.relative_to(CSRC)
        if not copy.exists() or copy.read_text() != text:  # otherwise it would be compiled again
            copy.write_text(text)


def build(target: str) -> Path:
    """Build one of TARGETS if it is out of date, and return its path.

    Raises:
        RuntimeError: the build fails.
    """
    includes = [pybind11.get_include(), sysconfig.get_path("include"), sysconfig.get_path("platinclude")]
    lines = [
        f"flags = {FLAGS} -I {HERE} -I {CSRC} " + " ".join(f"-isystem {path}" for path in includes),
        "rule compile",
        "  command = g++ $flags $more -MD -MF $out.d -c $in -o $out",
        "  deps = gcc",
        "  depfile = $out.d",
        "rule link",
        "  command = g++ $more $in -o $out -ldl",
    ]
    for name, (sources, linker_flags) in TARGETS.items():
        objects = {source: f"{name}.{source.stem}.o" for source in sources}
        for source, more in sources.items():
            lines += [
                f"build {objects[source]}: compile {source}",
                f"  more = {more} -DMODULE={Path(name).stem}",
            ]
        lines += [f"build {name}: link {' '.join(objects.values())}", f"  more = {linker_flags}"]
    return native_build.build(BUILD, lines, target, plant_all)


def load(name: str) -> ModuleType:
    """Return the module of one of TARGETS; it is built if it is out of date. Same errors as `build`."""
    return native_build.load(build(f"{name}.so"))
