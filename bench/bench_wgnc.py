"""project_wgnc, N = 65,536, against float64."""

import torch

from noisetilt_kernels import python_ref

from . import baselines
from .inputs import gaussian


def test_project_wgnc(compare):
    x = gaussian((1, 65536))
    half_length = torch.view_as_complex(x.view(1, -1, 2))
    compare(
        lambda: torch.ops.noisetilt.project_wgnc(x),
        eager={
            "python_ref": lambda: python_ref.project_wgnc(x.double()).float(),
            "idiomatic": lambda: baselines.project_wgnc(x),
        },
        target=6,
        fft_alone=lambda: torch.fft.ifft(torch.fft.fft(half_length)),
    )
