"""project_tile_stats on a 16x64x64 sample."""

import pytest
import torch

from noisetilt_kernels.backends import reference
from noisetilt_kernels.config import DEFAULT_ALPHA

from . import baselines
from .inputs import FLUX, gaussian, structured


@pytest.mark.parametrize("side", [4, 8, 16])
@pytest.mark.parametrize("field", [structured, gaussian])
def test_project_tile_stats(compare, field, side):
    x, tile, chunk_sizes = field(FLUX), (side, side), (4, 16)
    compare(
        lambda: torch.ops.noisetilt.project_tile_stats(x, tile, chunk_sizes),
        eager={
            "python_ref": lambda: reference.project_tile_stats(x[None], tile, chunk_sizes, DEFAULT_ALPHA),
            "idiomatic": lambda: baselines.project_tile_stats(x, tile, chunk_sizes),
        },
    )
