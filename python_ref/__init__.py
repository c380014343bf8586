"""Pure-PyTorch definition of every operation of noisetilt-kernels.

Each module defines one operation and is meant to be read beside the papers: NoiseTilt (arXiv 2606.18066) and
White Gaussian Noise Constraints, WGNC (arXiv 2602.08646). The kernels of `noisetilt_kernels` return the same
bits as these functions, except for FFTs of sizes that are no power of two.

All functions take float32 or float64 tensors of any layout and device, batch first. They do not check
arguments: `noisetilt_kernels` does.
"""

from .arithmetic import sqrt_rn, tree_sum
from .confidence_table import DEFAULT_ALPHA, MOST_DF, NORMAL, ChiSquare, Normal, Reference, confidence_table
from .fourier import (
    compact_fourier,
    compact_fourier_inverse,
    complex_fft,
    has_defined_fft,
    twiddle_factors,
)
from .order_stats import project_2os
from .tile_stats import MakeTable, merge_tiles, project_tile_stats, split_tiles
from .tiling import Region, mixing_regions, tile_regions
from .transforms import (
    butterfly,
    butterfly_inverse,
    hadamard_transform,
)
from .wgnc import from_wgnc_spectrum, project_wgnc, project_wgnc_blocks, to_wgnc_spectrum
from .whitening import identity, norm_projection, project, whiten

__all__ = [
    "DEFAULT_ALPHA",
    "MOST_DF",
    "NORMAL",
    "ChiSquare",
    "MakeTable",
    "Normal",
    "Reference",
    "Region",
    "butterfly",
    "butterfly_inverse",
    "compact_fourier",
    "compact_fourier_inverse",
    "complex_fft",
    "confidence_table",
    "from_wgnc_spectrum",
    "hadamard_transform",
    "has_defined_fft",
    "identity",
    "merge_tiles",
    "mixing_regions",
    "norm_projection",
    "project",
    "project_2os",
    "project_tile_stats",
    "project_wgnc",
    "project_wgnc_blocks",
    "split_tiles",
    "sqrt_rn",
    "tile_regions",
    "to_wgnc_spectrum",
    "tree_sum",
    "twiddle_factors",
    "whiten",
]
