"""Fused kernels for the whitening operators of reward-guided diffusion sampling (NTRK and WGNC).

Importing this package registers `torch.ops.noisetilt.*`.
"""

from . import ops as _ops  # registers the operators
from . import sampling
from .backends import backends
from .backends.tables import confidence_bounds
from .config import FULL, WhiteningConfig, preset
from .functional import hadamard_transform, pack_latents, project_wgnc, unpack_latents, whiten
from .python_ref import ChiSquare, Normal

__version__ = "0.1.0"

__all__ = [
    "FULL",
    "ChiSquare",
    "Normal",
    "WhiteningConfig",
    "backends",
    "confidence_bounds",
    "hadamard_transform",
    "pack_latents",
    "preset",
    "project_wgnc",
    "sampling",
    "unpack_latents",
    "whiten",
]
del _ops
