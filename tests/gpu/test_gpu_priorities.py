"""Cooperative launches on streams of different priority. This file is also the script of the process that
makes them, because that process may deadlock.

The projection kernel of the CUDA library occupies the whole GPU, and its blocks wait for each other. A launch
of a higher priority must not take a place from a launch that has begun, and must not begin with a part of its
blocks while the other launch holds the rest.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bits import assert_same_bits
from inputs import noise

from bench.inputs import power_law

REPEATS = 30
SECONDS = 120 if os.environ.get("NOISETILT_BACKEND") == "triton" else 40  # Triton compiles


def test_streams_of_different_priority() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        run = subprocess.run(
            [sys.executable, __file__], capture_output=True, text=True, timeout=SECONDS, env=environment
        )
    except subprocess.TimeoutExpired as expired:
        pytest.fail(f"{Path(__file__).name} did not end within {SECONDS} s; it printed: {expired.stdout!r}")
    assert run.returncode == 0, run.stdout + run.stderr


def main() -> None:
    import noisetilt_kernels as nt

    flux = power_law(1.0).float()[None].cuda()
    inputs = [flux, noise(1).cuda(), noise(7).cuda()]
    expected = [nt.whiten(x) for x in inputs]
    a = torch.randn(2048, 2048, device="cuda")
    torch.cuda.synchronize()
    lowest, highest = torch.cuda.Stream.priority_range()
    low, high = torch.cuda.Stream(priority=lowest), torch.cuda.Stream(priority=highest)
    print(f"priorities {low.priority} and {high.priority}", flush=True)

    for first, second in ((0, 0), (0, 1), (2, 0), (1, 2)):
        for order in ((low, high), (high, low)):
            results = []
            for _ in range(REPEATS):
                for k, stream in zip((first, second), order, strict=True):
                    with torch.cuda.stream(stream):
                        results.append((k, nt.whiten(inputs[k])))
            torch.cuda.synchronize()
            for k, result in results:
                assert_same_bits(result, expected[k], f"input {k}")
        print(f"inputs {first} and {second}: done", flush=True)

    results = []
    for _ in range(REPEATS):  # ordinary launches of the higher priority between cooperative ones
        with torch.cuda.stream(high):
            a = (a @ a).clamp_(-1, 1)
        with torch.cuda.stream(low):
            results.append(nt.whiten(flux))
    torch.cuda.synchronize()
    for result in results:
        assert_same_bits(result, expected[0], "beside products of matrices")
    print("products of matrices: done", flush=True)


if __name__ == "__main__":
    main()
