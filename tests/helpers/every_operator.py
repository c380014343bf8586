"""Calls of every operator in a separate process; its environment chooses the backend."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bits import assert_same_bits
from inputs import tables, values
from safetensors.torch import load_file, save_file
from torch import Tensor

import noisetilt_kernels as nt

SCRIPT = """
import json, sys, warnings
import torch
from safetensors.torch import load_file, save_file

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import noisetilt_kernels as nt
    inputs = load_file(sys.argv[1])
    x, lower, upper = inputs["x"], inputs["lower"], inputs["upper"]
    ops = torch.ops.noisetilt
    results = {
        "project_2os": ops.project_2os(x.flatten(1), lower, upper),
        "project_tile_stats": ops.project_tile_stats(x, [4, 4], [4]),
        "butterfly": ops.butterfly(x, [8, 8], 6),
        "hadamard_transform": nt.hadamard_transform(x, 0.125),
        "project_wgnc_blocks": torch.view_as_real(
            ops.project_wgnc_blocks(torch.view_as_complex(x.view(2, -1, 2)))
        ),
        "project_wgnc": ops.project_wgnc(x.flatten(1)),
        "compact_fourier": ops.compact_fourier(x.flatten(1)),
        "whiten": nt.whiten(x),
    }
    compiled = torch.compile(lambda x: nt.whiten(x), fullgraph=True, backend="eager")(x)
    assert bool((compiled == results["whiten"]).all())
    try:
        ops.whiten(x, "sdxl")
    except ValueError as error:
        message = str(error)
save_file(results, sys.argv[2])
print(json.dumps({
    "warnings": [
        [w.category.__name__, str(w.message), w.filename] for w in caught if "noisetilt" in str(w.message)
    ],
    "file": nt.__file__,
    "error": message,
    "backends": {device: [status.backend, status.refused] for device, status in nt.backends().items()},
}))
"""


class Outcome(NamedTuple):
    """Report and results of the process."""

    report: dict[str, Any]
    inputs: dict[str, Tensor]
    results: dict[str, Tensor]


def call_every_operator(directory: Path, package: Path, **environment: str) -> Outcome:
    """Run the script in `directory`, with the package from `package` and these environment variables."""
    lower, upper = tables("typical", 512, 4)
    inputs = {"x": values("1/k", (2, 8, 16, 16)), "lower": lower, "upper": upper}
    save_file(inputs, directory / "inputs.safetensors")
    (directory / "run.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "run.py", "inputs.safetensors", "results.safetensors"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(package), **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return Outcome(
        json.loads(done.stdout.splitlines()[-1]), inputs, load_file(directory / "results.safetensors")
    )


def assert_bits_of_the_kernels(outcome: Outcome) -> None:
    """Assert that the results have the bits of this process."""
    _, inputs, results = outcome
    x, lower, upper = inputs["x"], inputs["lower"], inputs["upper"]
    ops = torch.ops.noisetilt
    blocks = ops.project_wgnc_blocks(torch.view_as_complex(x.view(2, -1, 2)))
    assert_same_bits(results["project_2os"], ops.project_2os(x.flatten(1), lower, upper))
    assert_same_bits(results["project_tile_stats"], ops.project_tile_stats(x, [4, 4], [4]))
    assert_same_bits(results["butterfly"], ops.butterfly(x, [8, 8], 6))
    assert_same_bits(results["hadamard_transform"], nt.hadamard_transform(x, 0.125))
    assert_same_bits(results["project_wgnc_blocks"], torch.view_as_real(blocks))
    assert_same_bits(results["compact_fourier"], ops.compact_fourier(x.flatten(1)))
    assert_same_bits(results["project_wgnc"], ops.project_wgnc(x.flatten(1)))
    assert_same_bits(results["whiten"], nt.whiten(x))
