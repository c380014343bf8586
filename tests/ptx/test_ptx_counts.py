"""Counts of the PTX of the kernels do not grow beyond those in bench/gpu/counts.json."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ptx.build import NVCC

ROOT = Path(__file__).parents[2]
EXPECTED = ROOT / "bench" / "gpu" / "counts.json"
TOLERANCE = 1.05


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_no_count_grows(backend: str, tmp_path: Path) -> None:
    """After a change that makes a count larger for a good reason:

    python -m bench.gpu.count --write bench/gpu/counts.json
    """
    written = tmp_path / "counts.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.gpu.count", "--backend", backend, "--write", str(written)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    found, expected = json.loads(written.read_text()), json.loads(EXPECTED.read_text())
    expected = {name: counts for name, counts in expected.items() if name.startswith(f"{backend}: ")}
    assert found.keys() == expected.keys()
    grown = [
        f"{name}: {what} {before} -> {found[name][what]}"
        for name, counts in expected.items()
        for what, before in counts.items()
        if found[name][what] > TOLERANCE * before
    ]
    assert not grown
