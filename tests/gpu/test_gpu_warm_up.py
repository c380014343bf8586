"""Captures after one call: what that call covers (docs/cuda.md). This file is also the script of a
process that makes only these calls: a kernel that an earlier test has loaded would be loaded anyway.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bits import assert_same_bits
from device import BACKEND, CASES

SECONDS = 55 if BACKEND == "cuda" else 140  # Triton compiles
# The first case of a process that launches a kernel tests that it was loaded.
PROCESSES = (
    ("whiten",),
    (
        "project_2os",
        "project_tile_stats",
        "butterfly",
        "butterfly inverse",
        "butterfly of long tiles",
        "hadamard_transform",
        "hadamard_transform padded",
        "project_wgnc_blocks",
        "project_wgnc_blocks of 8",
        "compact_fourier",
        "compact_fourier inverse",
        "project_wgnc, blocks of 8",
        "project_wgnc",
    ),
)


@pytest.mark.parametrize("names", PROCESSES, ids=" to ".join)
def test_one_call_covers_the_capture(names: tuple[str, ...]) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "CUDA_MODULE_LOADING": "LAZY",
    }
    try:
        run = subprocess.run(
            [sys.executable, __file__, *names],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired as expired:
        pytest.fail(f"{Path(__file__).name} did not end within {SECONDS} s; it printed: {expired.stdout!r}")
    assert run.returncode == 0, run.stdout + run.stderr


def main() -> None:
    for name in sys.argv[1:]:
        case = CASES[name]
        # Tables and kernels of the CUDA library serve every batch. Plans of FFTs, copies of PyTorch and
        # Triton's kernels do not.
        batch = 3 if case.has_cufft or "padded" in name or BACKEND != "cuda" else 1
        case(case.input(batch))
        x = case.input(3, seed=1)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = case(x)
        graph.replay()
        assert_same_bits(result.cpu(), case(x).cpu(), name)
        print(f"{name}: captured after a call of batch {batch}", flush=True)


if __name__ == "__main__":
    main()
