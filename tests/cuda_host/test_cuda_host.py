"""Host code of the CUDA library over a stand-in for the CUDA runtime: what a call asks of the runtime."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from cuda_host.build import HERE, ROOT, build
from cuda_host.count_calls import CASES

QUESTIONS = {"get_device", "get_attribute", "set_attribute", "occupancy"}
WHITEN = [name for name in CASES if name.startswith("whiten")]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    command = [sys.executable, str(HERE / "count_calls.py"), str(build())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_first_call_asks_for_the_attributes_of_the_device(report: dict[str, Any]) -> None:
    """Without these calls, the counts below would prove nothing."""
    first, other_kernels = report["whiten, flux"]["first"], report["whiten, flux, float64"]["first"]
    asked = {name: first.get(name) for name in QUESTIONS}
    # The projection kernel, and four of FFTs.
    assert asked == {"get_device": 1, "get_attribute": 3, "set_attribute": 5, "occupancy": 1}
    # In float64 only one of two slices fits into the shared memory of this device, so both projection kernels
    # are used.
    asked = {name: other_kernels[name] for name in QUESTIONS & set(other_kernels)}
    assert asked == {"set_attribute": 6, "occupancy": 2}


@pytest.mark.parametrize("name", CASES)
def test_a_later_call_asks_nothing(name: str, report: dict[str, Any]) -> None:
    assert not QUESTIONS & set(report[name]["later"])


@pytest.mark.parametrize("name", WHITEN)
def test_whiten_is_one_operator_with_few_launches(name: str, report: dict[str, Any]) -> None:
    """Launches: two of finite_or_nan, one before, between and after the FFTs, and those of the FFTs.

    An FFT of 65,536 values takes two. The WAN latent has FFTs by PyTorch, and one launch next to each.
    """
    launches = 7 if "wan" in name else 9
    assert report[name]["later"] == {"launch": launches, "memset": 1}
    called = [operator for operator in report[name]["operators"] if operator.startswith("noisetilt.")]
    assert called == ["noisetilt._whiten.default"]


@pytest.mark.parametrize("name", sorted(set(CASES) - set(WHITEN)))
def test_other_operators_are_one_launch(name: str, report: dict[str, Any]) -> None:
    """One memset clears the counters of a projection with confidence tables."""
    counts = {"launch": 1, "memset": 1} if name in ("project_2os", "project_tile_stats") else {"launch": 1}
    assert report[name]["later"] == counts
