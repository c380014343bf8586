"""How the kernels are launched: block shapes and warps from launch_table.json, and no fusion of products and sums.

The table is made by `python -m bench.gpu.tune`; nothing is tuned in a user's program.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

LAUNCH_TABLE_PATH = Path(__file__).parent / "launch_table.json"
LAUNCH_TABLE: dict[str, dict[str, int]] = json.loads(LAUNCH_TABLE_PATH.read_text())
"""For each kernel its `warps` and the sizes of its blocks, powers of two; to be changed by `set_blocks`."""

_F = TypeVar("_F", bound=Callable[..., Any])
_plans: list[Any] = []


class Launch:
    """A launch of a kernel with everything but its tensors, which are its first parameters.

    They must always be of the same dtypes and begin at a multiple of 16 bytes, as memory from PyTorch does: for others
    Triton compiles another kernel. Its ordinary way finds the compiled one by looking at every argument; from the
    second time on that is spared here, since at hundreds of launches a call it would take most of the time.
    """

    def __init__(self, kernel: Any, num_programs: int, *scalars: float, **constants: Any) -> None:
        """The constants are those of the kernel's compile-time parameters, all of them and in their order."""
        self._kernel, self._grid, self._scalars, self._constants = (
            kernel,
            (num_programs, 1, 1),
            scalars,
            constants,
        )
        self._warps = LAUNCH_TABLE[kernel.fn.__name__]["warps"]
        self._rest = (*scalars, *constants.values())
        self._compiled: dict[int | None, Any] = {}  # by device; nothing of interpreted ones

    def __call__(self, *tensors: Tensor) -> None:
        """Enqueues the programs on the current stream of the current device."""
        device = torch.cuda.current_device() if tensors[0].is_cuda else None
        compiled = self._compiled.get(device)
        if compiled is not None:
            compiled[self._grid](*tensors, *self._rest)
            return
        options = {"num_warps": self._warps, "enable_fp_fusion": False}
        compiled = self._kernel[self._grid](*tensors, *self._scalars, **self._constants, **options)
        if device is not None:
            self._compiled[device] = compiled


def planned(plan: _F) -> _F:
    """Keeps what `plan` returns for the next call with such arguments: launches that depend on nothing else."""
    kept = lru_cache(maxsize=256)(plan)
    _plans.append(kept)
    return kept  # type: ignore[return-value]


def set_blocks(kernel: str, **sizes: int) -> None:
    """Changes the launch table's entry of a kernel in this process."""
    LAUNCH_TABLE[kernel].update(sizes)
    for plan in _plans:
        plan.cache_clear()


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def ceil_div(n: int, divisor: int) -> int:
    """n / divisor, rounded up."""
    return -(-n // divisor)
