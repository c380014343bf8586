"""butterfly, compact_fourier and hadamard_transform on a 16x64x64 sample."""

import torch

from noisetilt_kernels import python_ref

from . import baselines
from .inputs import FLUX, gaussian


def test_butterfly_12_steps(compare):
    x = gaussian(FLUX)
    compare(
        lambda: torch.ops.noisetilt.butterfly(x, [64, 64], 12),
        eager={
            "python_ref": lambda: python_ref.butterfly(x[None], (64, 64), 12),
            "idiomatic": lambda: baselines.repeated_butterfly(x, 12),
        },
        target=20,
    )


def test_compact_fourier(compare):
    x = gaussian((1, 65536))
    compare(
        lambda: torch.ops.noisetilt.compact_fourier(x),
        eager={"python_ref": lambda: python_ref.compact_fourier(x)},
    )


def test_hadamard_transform(compare):
    x = gaussian((16, 4096))
    compare(
        lambda: torch.ops.noisetilt.hadamard_transform(x),
        eager={"python_ref": lambda: python_ref.hadamard_transform(x)},
    )
