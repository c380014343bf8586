"""Runs of `bench/gpu.sh`: their steps and time limits.

Nothing here imports torch, so a run begins at once and outlives every fault.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import CARRIED, ROOT
from .driver import Driver, Report, Step
from .prepare import MANIFEST, tree_with

CUDA = {"NOISETILT_BACKEND": "cuda"}
CLUSTERS = CUDA | {"NOISETILT_CUDA_CLUSTERS": "1"}
TRITON = {"NOISETILT_BACKEND": "triton"}
PREPARE = ["python", "-m", "bench.gpu.prepare"]
TESTS = Path("tests", "gpu")
WITH_A_REFERENCE = ("bits", "large", "stages", "whiten")  # tests that take long to compute what they expect
LAUNCH_TABLE = "launch_table.json"  # what the tuning of the Triton kernels finds
# What compute-sanitizer, and a barrier of the debug build, print of a fault
FAULTS = r"=========\s+(Invalid|Error|Warning|Uninitialized|Barrier error|Potential)|.*barrier gave up"


@dataclass(frozen=True)
class Run:
    """Steps, and the limit of their time together in seconds."""

    seconds: float
    steps: Callable[[Path], list[Step]]  # of the folder for results


def _check(step: str, seconds: float, backend: dict[str, str] = CUDA, word: str = "", **more: Any) -> Step:
    words = [word] if word else []
    command = ["python", "-m", "bench.gpu.checks", step, *words]
    return Step(" ".join([step, *words]), command, seconds, environment=backend, **more)


def _tests(name: str, seconds: float, backend: dict[str, str], files: list[Path], chosen: str = "") -> Step:
    options = ["-q", "-ra", "-p", "no:cacheprovider", "--tb=short", "--maxfail=60"]
    chosen_by = ["-k", chosen] if chosen else []
    command = ["python", "-m", "pytest", *options, *chosen_by, *map(str, files)]
    return Step(name, command, seconds, environment=backend)


def _sanitizer(tool: str, seconds: float, backend: dict[str, str] = CUDA) -> Step:
    """Return a step with compute-sanitizer, on the kernels of this package alone.

    initcheck has to see all kernels: memory that others write would be uninitialised for it.
    """
    part_of_names = "noisetilt" if backend == CUDA else "_kernel"
    ours = [] if tool == "initcheck" else ["--kernel-regex", f"kns={part_of_names}"]
    command = [
        *(find_sanitizer(), "--tool", tool, *ours),
        *("--report-api-errors", "no", "--print-limit", "30", "--error-exitcode", "9"),
        *("python", "-m", "bench.gpu.sanitize"),
    ]
    # Every tensor is a separate allocation, so that accesses beside it are found.
    environment = backend | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Step(tool, command, seconds, "debug", environment, faults=FAULTS)


def find_sanitizer() -> str:
    """Return the path of compute-sanitizer, which may be in CUDA's folder alone."""
    in_cuda = Path("/usr/local").glob("cuda*/bin/compute-sanitizer")
    found = [shutil.which("compute-sanitizer"), *map(str, in_cuda)]
    return next((path for path in found if path), "compute-sanitizer")


def cuda(folder: Path) -> list[Step]:
    return [
        _check("load", 30),
        Step("build here", [*PREPARE, "--libraries"], 110, library=None, instead_of="load"),
        _check("bits", 45),
        _check("repeats", 25),
        _check("times", 40),
        _check("barrier", 20),
        _check("blocks", 20, library="any_blocks"),
        _check("streams", 30),
    ]


def sanitize(folder: Path) -> list[Step]:
    files = [
        path.relative_to(ROOT)
        # The priorities come last: that test may leave the GPU unusable.
        for path in sorted((ROOT / TESTS).glob("test_gpu_*.py"), key=lambda p: ("priorities" in p.stem, p))
        if path.stem.removeprefix("test_gpu_") not in WITH_A_REFERENCE
    ]
    chosen = "not compiles and not inductor and not gradients and not two_streams"
    return [
        _sanitizer("memcheck", 45),
        _sanitizer("racecheck", 45),
        _sanitizer("initcheck", 40),
        _tests("tests", 50, CUDA, files, chosen),
    ]


def flux(backend: dict[str, str]) -> list[Step]:
    return [
        _check("load", 25, backend),
        _check("bits", 50, backend, "flux"),
        _check("times", 30, backend, "flux"),
    ]


def clusters(folder: Path) -> list[Step]:
    return flux(CLUSTERS)


def triton(folder: Path) -> list[Step]:
    return flux(TRITON)


def full(folder: Path) -> list[Step]:
    """Return all steps, for a machine that is not lent by the minute."""
    steps = [Step("prepare", PREPARE, 900, library=None)]
    for make in (cuda, sanitize, clusters, triton):
        prefix = f"{make.__name__}: " if make in (clusters, triton) else ""
        steps += [
            replace(step, name=prefix + step.name, seconds=5 * step.seconds)
            for step in make(folder)
            if step.instead_of is None
        ]
    steps.append(_sanitizer("synccheck", 225))
    steps.append(replace(_sanitizer("memcheck", 225, TRITON), name="triton: memcheck"))
    for name, backend in (("cuda", CUDA), ("triton", TRITON)):
        steps += [
            _tests(f"{name}: all tests", 1800, backend, [TESTS]),
            Step(f"{name}: benchmarks", ["python", "-m", "bench.gpu"], 500, environment=backend),
        ]
    tune = ["python", "-m", "bench.gpu.tune", "--seconds", "280", "--output", str(folder / LAUNCH_TABLE)]
    return [*steps, Step("triton: tuning", tune, 300, environment=TRITON)]


RUNS = {
    "cuda": Run(240, cuda),
    "sanitize": Run(200, sanitize),
    "clusters": Run(120, clusters),
    "triton": Run(120, triton),
    "full": Run(3 * 3600, full),
}


def perform(name: str, folder: Path) -> bool:
    """Perform a run, and write its files to the folder. Return True if all steps succeeded."""
    run = RUNS[name]
    with tempfile.TemporaryDirectory(prefix="noisetilt-gpu-", ignore_cleanup_errors=True) as scratch:
        made: dict[str | None, Path] = {None: ROOT}

        def folder_of(library: str | None) -> Path:
            if library not in made:
                made[library] = tree_with(str(library), Path(scratch, str(library)))
            return made[library]

        driver = Driver(Report(folder, name), run.seconds, Path(scratch), folder_of)
        return driver.run(run.steps(folder))


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/gpu.sh", description=__doc__.splitlines()[0])
    parser.add_argument("run", choices=RUNS)
    name = parser.parse_args().run
    if name != "full" and not (CARRIED / MANIFEST).exists():
        print(f"bench/gpu.sh: {CARRIED} is missing; run `bench/gpu.sh prepare`, here or where there is nvcc")
        return 2
    return int(not perform(name, Path(os.environ.get("OUT", ROOT / "build" / "gpu")).absolute()))


if __name__ == "__main__":
    sys.exit(main())
