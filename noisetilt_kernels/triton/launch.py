"""How the kernels are launched: block shapes and warps from launch_table.json, and no fusion of products and sums.

The table is made by `python -m bench.gpu.tune`; nothing is tuned in a user's program.
"""

import json
from pathlib import Path
from typing import Any

LAUNCH_TABLE_PATH = Path(__file__).parent / "launch_table.json"
LAUNCH_TABLE: dict[str, dict[str, int]] = json.loads(LAUNCH_TABLE_PATH.read_text())
"""For each kernel its `warps` and the size of its blocks, powers of two."""


def launch(kernel: Any, num_programs: int, *args: Any, **constants: Any) -> None:
    """Enqueues `num_programs` programs of a kernel on the current stream."""
    warps = LAUNCH_TABLE[kernel.fn.__name__]["warps"]
    kernel[(num_programs,)](*args, **constants, num_warps=warps, enable_fp_fusion=False)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
