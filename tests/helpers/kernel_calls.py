"""Calls of every operator of a kernel from the Kernel Hub, or of the package, which has the same functions.

This module imports torch alone: a process without the package uses it too.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def every_operator(kernel: Any, x: Tensor) -> dict[str, Tensor]:
    """Return the result of each operator by its name. x: samples (B, C, H, W), C*H*W = 4 * 64."""
    flat = x.flatten(1)
    precise = torch.float64 if x.dtype == torch.float64 else torch.float32
    bounds = torch.linspace(-2, 1, 256, dtype=precise).view(64, 4)
    spectrum = torch.view_as_complex(flat.to(precise).unflatten(1, (-1, 2)))
    config = kernel.WhiteningConfig((4,), ((4, 4),), ((kernel.FULL, 2),))
    return {
        "project_2os": kernel.project_2os(flat, bounds, bounds + 0.5),
        "project_tile_stats": kernel.project_tile_stats(x, (4, 3), (4,)),
        "project_wgnc": kernel.project_wgnc(flat, 8),
        "project_wgnc_blocks": kernel.project_wgnc_blocks(spectrum, 8),
        "compact_fourier": kernel.compact_fourier(flat),
        "compact_fourier, inverse": kernel.compact_fourier(flat, inverse=True),
        "butterfly": kernel.butterfly(x, (4, 4), 3),
        "hadamard_transform": kernel.hadamard_transform(flat[:, :200], 0.25),
        "whiten": kernel.whiten(x),
        "whiten, config": kernel.whiten(x, config),
    }


def load_and_call(folder: Path, inputs: Path, results: Path) -> Any:
    """Load the kernel in `folder`, save what `every_operator` returns for each saved input, return it."""
    from kernels import get_local_kernel

    kernel = get_local_kernel(folder)
    torch.save([every_operator(kernel, x) for x in torch.load(inputs)], results)
    return kernel
