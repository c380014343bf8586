"""Launches of the kernels, with block sizes and warps from launch_table.json. Multiplications and additions
are not fused.

`python -m bench.gpu.tune` makes the table. Nothing is tuned in a user's program.
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
"""For each kernel its `warps` and block sizes, all powers of two. Use `set_blocks` to change them."""

_F = TypeVar("_F", bound=Callable[..., Any])
_plans: list[Any] = []


class Launch:
    """Launch of a kernel with all arguments except its tensors, which are the kernel's first parameters.

    The tensors must have the same dtypes at every call and start at a multiple of 16 bytes, like memory from
    PyTorch. For other tensors Triton would compile another kernel. Triton inspects every argument to find the
    compiled kernel. That would take most of the time of an operator with hundreds of launches, so the
    compiled kernel is kept here.
    """

    def __init__(self, kernel: Any, num_programs: int, *scalars: float, **constants: Any) -> None:
        """`constants` are all compile-time parameters of the kernel, in order."""
        self._kernel, self._grid, self._scalars, self._constants = (
            kernel,
            (num_programs, 1, 1),
            scalars,
            constants,
        )
        self._warps = LAUNCH_TABLE[kernel.fn.__name__]["warps"]
        self._rest = (*scalars, *constants.values())
        self._compiled: dict[int | None, Any] = {}  # by device; interpreted kernels are not kept

    def __call__(self, *tensors: Tensor) -> None:
        """Enqueue the kernel on the current stream of the current device."""
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
    """Cache the launches that `plan` returns. They depend on its arguments and on the launch table only."""
    kept = lru_cache(maxsize=256)(plan)
    _plans.append(kept)
    return kept  # type: ignore[return-value]


def set_blocks(kernel: str, **sizes: int) -> None:
    """Change the launch table's entry of a kernel, in this process."""
    LAUNCH_TABLE[kernel].update(sizes)
    for plan in _plans:
        plan.cache_clear()


def power_of_two(n: int) -> int:
    """Smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def ceil_div(n: int, divisor: int) -> int:
    """Quotient n / divisor, rounded up."""
    return -(-n // divisor)
