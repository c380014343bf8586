"""Compiled library of the kernel. kernel-builder compiles it, and `_ops` loads it. A noarch kernel has none.

Without a library the operators are defined here, from the same schemas.
"""

import torch

from .._ops import add_op_namespace_prefix, ops
from . import schemas

_definitions = None if hasattr(ops, "_project_") else schemas.define()


def _reason(device: str) -> str | None:
    """Return the reason why there are no compiled kernels for a device, or None if there are some."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(add_op_namespace_prefix("_project_"), device):
        return None
    return f"this build of the kernel has no compiled library for {device}"


failure = _reason("CPU")
"""Reason why there are no C++ kernels. None if there are some."""

cuda_failure = _reason("CUDA")
"""Reason why there are no CUDA kernels. None if there are some."""


def build_info() -> dict[str, str]:
    """Return how the C++ kernels were built, and the CPU `variant` that runs. Empty without them."""
    return {} if failure is not None else _parse(ops._build_info())


def cuda_build_info() -> dict[str, str]:
    """Return how the CUDA kernels were built. Empty without them."""
    return {} if cuda_failure is not None else _parse(ops._cuda_build_info())


def _parse(lines: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in lines.splitlines())
