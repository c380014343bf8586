"""Tests and benchmarks on a GPU. `bench/gpu.sh` runs them."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CARRIED = ROOT / "build" / "carried"
"""Folder of what `prepare` builds, and what a machine with a GPU gets beside the sources."""

sys.path.append(str(ROOT / "tests" / "helpers"))  # comparison of bits, tolerances, inputs
