"""The Triton kernels as a backend for GPUs. Triton compiles them at the first call, so installation needs no
compiler.

The operations are in the module `operations`. They are imported at the first call, because importing Triton
takes a third of a second.
"""

import os
from functools import cache

import torch
from torch import Tensor

from ...config import Tile, WhiteningConfig
from ..tables import Extents

NAME = "triton"

OLDEST = (3, 6)
"""Oldest supported version of Triton."""
MOST_SAMPLE_VALUES = 2**30
"""Largest number of values in a sample: offsets in it are 32-bit numbers."""
MOST_TILE_VALUES = 16_384
"""Largest number of values in a tile: one program holds a whole tile."""
MOST_BLOCK_COEFFICIENTS = 2048
"""Largest number of coefficients in a WGNC block: one program holds a whole block."""

_OLDEST_CAPABILITY = (8, 0)  # of NVIDIA GPUs


def refusal(op: str, device: torch.device, extents: Extents) -> str | None:
    """Return the reason why the Triton kernels cannot serve the call on the device, or None if they can."""
    return (
        _refused_device(device) or _refused_installation() or _refused_driver() or _refused_extents(extents)
    )


def describe() -> str:
    """Describe the backend in one line."""
    how = "in the interpreter" if _interpreting() else "compiled at the first call"
    return (
        f"Triton {_version()} kernels, {how}; not for tiles above {MOST_TILE_VALUES} values, "
        f"WGNC blocks above {MOST_BLOCK_COEFFICIENTS} coefficients, samples above {MOST_SAMPLE_VALUES} values"
    )


# ---- operations ----


def project_2os(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    from . import operations

    return operations.project_2os(x, lower, upper)


def project_tile_stats(x: Tensor, tile: Tile, chunk_sizes: tuple[int, ...], alpha: float) -> Tensor:
    from . import operations

    return operations.project_tile_stats(x, tile, chunk_sizes, alpha)


def whiten(x: Tensor, config: WhiteningConfig) -> Tensor:
    from . import operations

    return operations.whiten(x, config)


def compact_fourier(x: Tensor, inverse: bool) -> Tensor:
    from . import operations

    return operations.compact_fourier(x, inverse)


def butterfly(x: Tensor, tile: Tile, steps: int, inverse: bool) -> Tensor:
    from . import operations

    return operations.butterfly(x, tile, steps, inverse)


def hadamard_transform(x: Tensor, scale: float) -> Tensor:
    from . import operations

    return operations.hadamard_transform(x, scale)


def project_wgnc(x: Tensor, block_size: int) -> Tensor:
    from . import operations

    return operations.project_wgnc(x, block_size)


def project_wgnc_blocks(y: Tensor, block_size: int) -> Tensor:
    from . import operations

    return operations.project_wgnc_blocks(y, block_size)


# ---- reasons for a refusal ----


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
        return "this torch is built without GPU support"
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
    """Return the reason why Triton's driver cannot be used. Triton builds parts of it with a C compiler at
    first use.
    """
    if not torch.cuda.is_available():
        return None
    import triton

    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # anything that the compiler, the linker or the driver raises
        reason = f"{type(error).__name__}: {error}"
        return f"Triton cannot use the GPU ({reason}); it needs a C compiler and Python's headers"
    return None


def _version() -> str:
    import triton  # here, because importing is slow; its distributions have several names, so no metadata

    return triton.__version__


def _interpreting() -> bool:
    """Return True if Triton interprets the kernels, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"
