"""Operators on a machine with few packages: torch, what torch needs, numpy and scipy."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import noisetilt_kernels as nt

PREAMBLE = """
import sys

class Absent:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent)
import torch
import noisetilt_kernels as nt
"""
SCRIPT = """
from noisetilt_kernels.backends import table_cache

x = torch.randn(1, 4, 8, 8)
for y in (nt.whiten(x), torch.ops.noisetilt.whiten(x), torch.ops.noisetilt.project_wgnc(x.flatten(1))):
    assert y.isfinite().all()
print(nt.backends()["cpu"].backend, table_cache.directory())
"""
WITHOUT_SCIPY = """
from noisetilt_kernels.backends.table_cache import directory

x, ops = torch.randn(1, 4, 8, 8), torch.ops.noisetilt
bounds = torch.zeros(64, 4)
for y in (
    ops.butterfly(x, [8, 8], 6),
    ops.hadamard_transform(x),
    ops.compact_fourier(x.flatten(1)),
    ops.project_wgnc(x.flatten(1)),
    ops.project_2os(x.flatten(1), bounds - 1, bounds + 1),
):
    assert y.isfinite().all()
try:
    print(nt.whiten(x).isfinite().all().item(), directory().is_dir())
except ModuleNotFoundError as error:
    print(error.name)
"""


def _with_requirements(*names: str) -> set[str]:
    """Names of distributions with all that they require, extras apart."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = re.sub("[-_.]+", "-", left.pop()).lower()
        if name in found:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another system
        found.add(name)
        left += [re.split(r"[ ;<>=!~\[(]", text)[0] for text in requirements if "extra ==" not in text]
    return found


def _modules_without(*names: str) -> list[str]:
    """Installed modules of all distributions except this package, these, and their requirements."""
    there = _with_requirements(*names) | {"noisetilt-kernels"}
    return [
        module
        for module, owners in metadata.packages_distributions().items()
        if not any(re.sub("[-_.]+", "-", owner).lower() in there for owner in owners)
    ]


@pytest.mark.parametrize("backend", ["cpu", "reference", pytest.param("triton", marks=pytest.mark.slow)])
def test_the_operators_need_torch_numpy_and_scipy(backend: str, tmp_path: Path) -> None:
    absent = _modules_without("torch", "numpy", "scipy", *(["triton"] if backend == "triton" else []))
    assert {"platformdirs", "safetensors", "click", "tqdm"}.issubset(absent)
    assert _run(SCRIPT, absent, tmp_path, NOISETILT_BACKEND=backend) == [backend, "None"]
    assert list(tmp_path.iterdir()) == []


def test_only_new_tables_need_scipy(tmp_path: Path) -> None:
    assert _run(WITHOUT_SCIPY, ["scipy"], tmp_path) == ["scipy"]
    assert _run(WITHOUT_SCIPY, [], tmp_path) == ["True", "True"]  # fills the cache on disk
    assert _run(WITHOUT_SCIPY, ["scipy"], tmp_path) == ["True", "True"]


def _run(script: str, absent: list[str], folder: Path, **variables: str) -> list[str]:
    """Return the words that a script prints in a process without some modules."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(nt.__file__).parents[1]),
        "XDG_CACHE_HOME": str(folder / "cache"),
        **variables,
    }
    command = [sys.executable, "-c", PREAMBLE + script, *absent]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
