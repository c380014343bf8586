"""The compiled CUDA kernels as a backend: the operations are those of `native`, on another device."""

import torch

from . import library
from .compiled import (
    butterfly,
    compact_fourier,
    hadamard_transform,
    has_kernels_for,
    project_2os,
    project_tile_stats,
    project_wgnc,
    project_wgnc_blocks,
    whiten,
)
from .extents import Extents

NAME = "cuda"

__all__ = [
    "butterfly",
    "compact_fourier",
    "hadamard_transform",
    "project_2os",
    "project_tile_stats",
    "project_wgnc",
    "project_wgnc_blocks",
    "whiten",
]


def refusal(op: str, device: torch.device, extents: Extents) -> str | None:
    """Why the CUDA kernels cannot serve the operator on the device; None if they can."""
    if device.type != "cuda":
        return f"its kernels are for CUDA devices, not for {device.type}"
    if library.cuda_failure is not None:
        return library.cuda_failure
    if not has_kernels_for("cuda"):
        return "this build has no CUDA kernels"
    return _unserved_gpu()


def describe() -> str:
    """One line on what serves."""
    return f"CUDA kernels for compute capability {library.cuda_build_info()['architectures']}"


def _unserved_gpu() -> str | None:
    """Which GPU here the kernels were not built for; None if there is none."""
    built = library.cuda_build_info()["architectures"]
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not any(_runs_on(arch, capability) for arch in built.split()):
            return (
                f"the CUDA library is built for compute capability {built}, {torch.cuda.get_device_name(index)} has "
                f"{capability[0]}.{capability[1]}; set TORCH_CUDA_ARCH_LIST to it and install again"
            )
    return None


def _runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Binary code runs on later processors of its generation, PTX on all later ones."""
    major, minor = map(int, arch.removesuffix("+PTX").split("."))
    return (major, minor) <= capability and (major == capability[0] or arch.endswith("+PTX"))
