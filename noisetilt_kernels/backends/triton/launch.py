"""Launches of the kernels, with block sizes and warps from launch_table.json. Multiplications and additions
are not fused.

`python -m bench.gpu.tune` makes the table. Nothing is tuned in a user's program.
"""

import json
import re
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


ALIGNMENT = 16
"""Most tensors begin at a multiple of this many bytes. For others Triton compiles another kernel."""


class Launch:
    """Launch of a kernel with all arguments except its tensors, which are the kernel's first parameters.

    Triton inspects every argument to find the compiled kernel. That would take most of the time of an
    operator with hundreds of launches, so compiled kernels are kept here, by all that may differ between two
    calls: the device, and the dtype and the alignment of each tensor.
    """

    def __init__(
        self, kernel: Any, num_programs: int, *scalars: float, in_place: bool = False, **constants: Any
    ) -> None:
        """`constants` are all compile-time parameters of the kernel, in order.

        in_place: an output tensor may be an input tensor. No two warps may then hold the same element.
        """
        self._kernel, self._grid, self._scalars, self._constants = (
            kernel,
            (num_programs, 1, 1),
            scalars,
            constants,
        )
        self._in_place = in_place
        self._warps = LAUNCH_TABLE[kernel.fn.__name__]["warps"]
        self._rest = (*scalars, *constants.values())
        self._compiled: dict[tuple[Any, ...], Any] = {}  # interpreted kernels are not kept

    def __call__(self, *tensors: Tensor) -> None:
        """Enqueue the kernel on the current stream of the current device.

        Raises:
            RuntimeError: the kernel works in place and would not be safe with these block sizes.
        """
        on_gpu = tensors[0].is_cuda
        variant = (
            torch.cuda.current_device() if on_gpu else None,
            *[(tensor.dtype, tensor.data_ptr() % ALIGNMENT == 0) for tensor in tensors],
        )
        compiled = self._compiled.get(variant)
        if compiled is not None:
            compiled[self._grid](*tensors, *self._rest)
            return
        options = {"num_warps": self._warps, "enable_fp_fusion": False}
        if on_gpu and self._in_place:  # compile it first, and launch it only if that is safe
            self._check_in_place(
                self._kernel.warmup(*tensors, *self._scalars, **self._constants, **options, grid=self._grid)
            )
        compiled = self._kernel[self._grid](*tensors, *self._scalars, **self._constants, **options)
        if on_gpu:
            self._compiled[variant] = compiled

    def _check_in_place(self, compiled: Any) -> None:
        tensor = shared_by_warps(compiled.asm["ttgir"])
        if tensor is not None:
            name = self._kernel.fn.__name__
            raise RuntimeError(
                f"{name} works in place, but two of its {self._warps} warps hold the same element of "
                f"{tensor}; it needs fewer warps or larger blocks than {LAUNCH_TABLE[name]} in "
                f"{LAUNCH_TABLE_PATH}"
            )


# ---- layouts of compiled kernels ----

_LAYOUT = re.compile(r"^(#\w+) = #ttg\.(\w+)<\{(.*)\}>", re.MULTILINE)
_ACCESS = re.compile(r"\b(?:tt|amdg|amdgpu)\.(?:buffer_)?(?:load|store)\b.*")
_TENSOR = re.compile(r"\btensor<([\dx]+)x.*, (#.*)>")


def shared_by_warps(ttgir: str) -> str | None:
    """Return a tensor in memory of which two warps hold the same element, or None if there is none.

    If the kernel works in place, a warp may read there what another one has already overwritten.

    ttgir: the kernel in Triton's intermediate language, with the layout of each tensor.
    """
    layouts = {name: (kind, fields) for name, kind, fields in _LAYOUT.findall(ttgir)}
    for access in _ACCESS.findall(ttgir):
        tensor = _TENSOR.search(access)
        if tensor is None:
            return "a scalar"
        shape, name = tensor.groups()
        kind, fields = layouts.get(name, ("", ""))
        if _is_shared([int(extent) for extent in shape.split("x")], kind, fields):
            return f"a tensor {shape} with the layout {kind}<{fields}>" if kind else f"a tensor with {name}"
    return None


def _is_shared(shape: list[int], kind: str, fields: str) -> bool:
    """Return True if the layout gives an element to several warps, or if it is of an unknown kind."""
    numbers = {
        key: [int(n) for n in text.split(",")] for key, text in re.findall(r"(\w+) = \[([\d, ]+)\]", fields)
    }
    if kind == "blocked":
        parts = zip(
            shape, numbers["sizePerThread"], numbers["threadsPerWarp"], numbers["warpsPerCTA"], strict=True
        )
        return any(warps > max(1, extent // (each * lanes)) for extent, each, lanes, warps in parts)
    # A linear layout names the steps from warp 0 to warps 1, 2, 4, ..; where a step is 0, elements repeat.
    warps = re.search(r"warp = \[(.*?)\], block", fields) if kind == "linear" else None
    return warps is None or re.search(r"\[0(?:, 0)*\]", warps[1]) is not None


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
