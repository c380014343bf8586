"""Fused kernels for the whitening operators of reward-guided diffusion sampling (NTRK and WGNC).

The operators are the functions below: `whiten`, `project_2os`, `project_tile_stats`, `project_wgnc`,
`project_wgnc_blocks`, `compact_fourier`, `butterfly` and `hadamard_transform`. They call
`torch.ops.noisetilt.*`, which importing this package registers. `sampling` has the samplers that use them.
All errors that the package defines are a `NoisetiltError`.
"""

from . import ops as _ops  # registers the operators
from . import sampling
from .backends import backends
from .backends.tables import confidence_table
from .checks import NoisetiltError
from .config import FULL, WhiteningConfig, preset
from .functional import (
    butterfly,
    compact_fourier,
    hadamard_transform,
    pack_latents,
    project_2os,
    project_tile_stats,
    project_wgnc,
    project_wgnc_blocks,
    unpack_latents,
    whiten,
)
from .python_ref import ChiSquare, Normal

__version__ = "0.1.0"

__all__ = [
    "FULL",
    "ChiSquare",
    "NoisetiltError",
    "Normal",
    "WhiteningConfig",
    "backends",
    "butterfly",
    "compact_fourier",
    "confidence_table",
    "hadamard_transform",
    "pack_latents",
    "preset",
    "project_2os",
    "project_tile_stats",
    "project_wgnc",
    "project_wgnc_blocks",
    "sampling",
    "unpack_latents",
    "whiten",
]
del _ops
