"""The Triton kernels as a backend: for every GPU that Triton compiles for, without a compiler at installation.

The operations are in the package `noisetilt_kernels.triton`, which is imported when the first of them is called.
"""

import importlib
import os
from functools import cache
from typing import Any

import torch

from ..extents import Extents

NAME = "triton"

OLDEST = (3, 6)
MOST_SAMPLE_VALUES = 2**30
"""Values of a sample: its places are 32-bit numbers."""
MOST_TILE_VALUES = 16_384
"""Values of a tile that one program holds."""
MOST_BLOCK_COEFFICIENTS = 2048
"""Coefficients of a WGNC block that one program holds."""

_OLDEST_CAPABILITY = (8, 0)  # of NVIDIA's


def refusal(op: str, device: torch.device, extents: Extents) -> str | None:
    """Why the Triton kernels cannot serve the operator on the device, for such arguments; None if they can."""
    return (
        _refused_device(device) or _refused_installation() or _refused_driver() or _refused_extents(extents)
    )


def describe() -> str:
    """One line on what serves."""
    how = "in the interpreter" if _interpreting() else "compiled at the first call"
    return (
        f"Triton {_version()} kernels, {how}; not for tiles above {MOST_TILE_VALUES} values, WGNC blocks above "
        f"{MOST_BLOCK_COEFFICIENTS} coefficients, samples above {MOST_SAMPLE_VALUES} values"
    )


def __getattr__(name: str) -> Any:
    """An operation of `noisetilt_kernels.backends.triton.operations`."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("noisetilt_kernels.backends.triton.operations"), name)


def _refused_device(device: torch.device) -> str | None:
    if device.type == "cpu":
        return (
            None
            if _interpreting()
            else "Triton compiles for GPUs (TRITON_INTERPRET=1 interprets it, for tests)"
        )
    if device.type != "cuda":
        return f"there are no Triton kernels for {device.type}"
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built for no GPU"
    if torch.version.hip is None:
        for index in range(torch.cuda.device_count()) if device.index is None else [device.index]:
            capability = torch.cuda.get_device_capability(index)
            if capability < _OLDEST_CAPABILITY:
                return (
                    f"Triton needs compute capability 8.0, {torch.cuda.get_device_name(index)} has "
                    f"{capability[0]}.{capability[1]}"
                )
    return None


def _refused_extents(extents: Extents) -> str | None:
    for what, extent, most in (
        ("samples of {} values", extents.sample_size, MOST_SAMPLE_VALUES),
        ("tiles of {} values", extents.tile_size, MOST_TILE_VALUES),
        ("blocks of {} coefficients", extents.block_size, MOST_BLOCK_COEFFICIENTS),
    ):
        if extent > most:
            return f"{what.format(extent)} are too large: its kernels serve up to {most}"
    return None


@cache
def _refused_installation() -> str | None:
    try:
        version = _version()
    except ImportError as error:
        return f"Triton cannot be imported ({error}); pip install 'noisetilt-kernels[triton]'"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"Triton {version} is installed; {OLDEST[0]}.{OLDEST[1]} or newer is needed"
    return None


@cache
def _refused_driver() -> str | None:
    """Triton builds parts of its driver with a C compiler, when they are first used."""
    if not torch.cuda.is_available():
        return None
    import triton

    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # whatever the compiler, the linker or the driver raises
        reason = f"{type(error).__name__}: {error}"
        return f"Triton cannot use the GPU ({reason}); it needs a C compiler and Python's headers"
    return None


def _version() -> str:
    import triton  # here, because it takes a third of a second; and its distributions have several names

    return triton.__version__


def _interpreting() -> bool:
    """Whether Triton's kernels are interpreted, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"
