"""project_2os, N = 65,536."""

import pytest
import torch

from noisetilt_kernels import confidence_table, python_ref

from . import baselines
from .inputs import FLUX, gaussian, structured


@pytest.mark.parametrize("chunk_size", [4, 16])
@pytest.mark.parametrize(
    ("field", "target"), [(structured, 20), (gaussian, 50)], ids=["structured", "gaussian"]
)
def test_project_2os(compare, field, target, chunk_size):
    x = field(FLUX).flatten()
    lower, upper = (table.float() for table in confidence_table(x.numel() // chunk_size, chunk_size))
    compare(
        lambda: torch.ops.noisetilt.project_2os(x, lower, upper),
        eager={
            "python_ref": lambda: python_ref.project_2os(x[None], lower, upper),
            "idiomatic": lambda: baselines.project_2os(x, lower, upper),
        },
        target=target,
        stable_sorts=lambda: baselines.project_2os(x, lower, upper, stable=True),
    )
