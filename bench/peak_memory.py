"""Peak memory of `whiten` without its input and tables, as a multiple of the input: `python -m
bench.peak_memory`.

Linux only. The allocator returns every freed block at once. Therefore the high-water mark of the process is
the memory that the call held, without memory that the allocator kept.
"""

import os
import sys
from pathlib import Path

TUNABLES = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}


def high_water_mark() -> int:
    """Return the largest resident size of this process in bytes since `reset_high_water_mark`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def reset_high_water_mark() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    import torch

    import noisetilt_kernels  # noqa: F401

    from .inputs import FLUX, WAN, structured

    for preset, shape in (("flux", FLUX), ("wan", WAN)):
        x = structured(shape)
        torch.ops.noisetilt.whiten(x, preset)  # makes the tables and the FFT's plans
        reset_high_water_mark()
        before = high_water_mark()
        torch.ops.noisetilt.whiten(x, preset)
        extra = high_water_mark() - before
        print(f"whiten, {preset}: {extra / (4 * x.numel()):.2f} x the input, the result included")


if __name__ == "__main__":
    if "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, "-m", "bench.peak_memory"], {**os.environ, **TUNABLES})
    main()
