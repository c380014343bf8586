"""Count what calls of the CUDA backend ask of the CUDA runtime.

`PYTHONPATH=. python tests/cuda_host/count_calls.py LIBRARY` prints JSON. For each case: the calls of the
runtime in the first call of the backend and in a later one, the operators that Python calls in the backend,
and the median microseconds of a call of the function of `nt`. Tensors are on the CPU, and nothing is
computed. The time has no share of a driver, of an FFT, and of the questions which stream is the current one
and whether it is being captured.
"""

import ctypes
import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

FUNCTIONS = (  # in the order of the enumeration Call in cuda_runtime.h
    "launch",
    "memset",
    "copy",
    "get_device",
    "get_attribute",
    "set_attribute",
    "occupancy",
)
FLUX, WAN = (16, 64, 64), (336, 60, 104)
CASES: dict[str, tuple[Any, ...]] = {  # function of nt, and its arguments
    "whiten, flux": ("whiten", torch.zeros(FLUX)),
    "whiten, flux, batch 8": ("whiten", torch.zeros(8, *FLUX)),
    "whiten, flux, float64": ("whiten", torch.zeros(FLUX, dtype=torch.float64)),
    "whiten, wan": ("whiten", torch.zeros(1, *WAN)),
    "project_2os": ("project_2os", torch.zeros(4096), torch.zeros(1024, 4), torch.zeros(1024, 4)),
    "project_tile_stats": ("project_tile_stats", torch.zeros(FLUX), [4, 4], [4, 16]),
    "butterfly": ("butterfly", torch.zeros(FLUX), [64, 64], 12),
    "hadamard_transform": ("hadamard_transform", torch.zeros(4096)),
    "hadamard_transform, bfloat16": ("hadamard_transform", torch.zeros(4096, dtype=torch.bfloat16)),
    "project_wgnc_blocks": ("project_wgnc_blocks", torch.zeros(4096, dtype=torch.complex64)),
}
ROUNDS, CALLS = 40, 50


class Operators(TorchDispatchMode):
    """List of the operators that Python calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(str(operator))
        return operator(*args, **(kwargs or {}))


def main(path: str) -> None:
    with mock.patch.object(Path, "glob", lambda *_: iter(())), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library _C, which is not found
        import noisetilt_kernels as nt
    from noisetilt_kernels import ops as operators
    from noisetilt_kernels import registration
    from noisetilt_kernels.backends import cuda

    torch.ops.load_library(path)
    library = ctypes.CDLL(path)
    library.cuda_host_calls.restype = ctypes.c_int64
    registration.backend_for = lambda *_: cuda
    torch.cuda.is_current_stream_capturing = lambda: False
    cuda.raise_for_faults = lambda *_: None

    def calls() -> dict[str, int]:
        return {name: library.cuda_host_calls(k) for k, name in enumerate(FUNCTIONS)}

    def counted(function: Callable[[], Tensor]) -> dict[str, int]:
        before = calls()
        function()
        return {name: count - before[name] for name, count in calls().items() if count > before[name]}

    def microseconds(function: Callable[[], Tensor]) -> float:
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            for _ in range(CALLS):
                function()
            times.append((time.perf_counter() - start) / CALLS)
        return median(times) * 1e6

    report = {}
    for title, (name, x, *args) in CASES.items():
        call = partial(getattr(nt, name), x, *args)
        first, later = counted(call), counted(call)
        plan = getattr(operators, f"_{name}")(x, *args)  # its function runs below the public operator
        with Operators() as called:
            plan.run(cuda, x.view(-1, *plan.sample_shape), *(arg for arg in args if isinstance(arg, Tensor)))
        report[title] = {
            "first": first,
            "later": later,
            "operators": called.names,
            "microseconds": microseconds(call),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
