"""The PTX that Triton makes, executed: the bits of the reference, and planted faults that are found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ptx.build import load
from ptx.triton_cases import PLANTS

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> dict[str, str | None]:
    """Return what ptx.triton_cases prints: the difference, or None, of every case."""
    load("interpreter")  # built once, here
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "helpers"))),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", "-m", "ptx.triton_cases", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["case"]: line["difference"] for line in lines}


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "capability_and_dtype",
    [
        "90 float32",
        "80 float32",
        pytest.param("90 float64", marks=slow),
        pytest.param("80 float64", marks=slow),
    ],
)
def test_every_operator(capability_and_dtype: str) -> None:
    found = run(*capability_and_dtype.split())
    assert len(found) == 46
    assert not {case: difference for case, difference in found.items() if difference}


@slow
@pytest.mark.parametrize("capability_and_dtype", ["90 float32", "80 float64"])
def test_samples_of_full_size(capability_and_dtype: str) -> None:
    found = run(*capability_and_dtype.split(), "--full")
    assert len(found) == 8
    assert not {case: difference for case, difference in found.items() if difference}


@pytest.mark.parametrize(
    "plant", [p if p in ("barrier", "vector", "predicate") else pytest.param(p, marks=slow) for p in PLANTS]
)
def test_planted_faults_are_found(plant: str) -> None:
    found = run("90", "float32", "--plant", plant)
    *_, last = found.values()
    assert last is not None
    if plant in ("unknown rounding", "unknown opcode"):
        assert "is unknown" in last  # and the message names the opcode
    elif plant == "barrier":
        assert "a race" in last
