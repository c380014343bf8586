"""Values near the largest float32: a result is finite wherever the reference's is."""

import math

import pytest
import torch
from inputs import values
from tolerances import FFT, relative_error
from torch import Tensor

from noisetilt_kernels import python_ref

compact_fourier = torch.ops.noisetilt.compact_fourier
project_wgnc = torch.ops.noisetilt.project_wgnc

SIZES = [64, 960, 4096, 65_536, 2**18]
SCALES = [1e30, 1e34, 1e35, 3e36, 1e37, 3e38]


def sample(name: str, size: int, scale: float) -> Tensor:
    x = torch.ones(1, size) if name == "constant" else values(name, (1, size)).clamp(-1, 1)
    return x * scale


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["normal", "constant"])
def test_transforms(name: str, size: int, scale: float) -> None:
    x = sample(name, size, scale)
    z, back = compact_fourier(x), compact_fourier(x, inverse=True)
    exact = python_ref.compact_fourier(x.double()), python_ref.compact_fourier_inverse(x.double())
    if python_ref.compact_fourier(x).isfinite().all():
        assert relative_error(z, exact[0]) < FFT[torch.float32]
    # the FFT of the inverse adds values that are as small as its result
    if exact[1].abs().max() < torch.finfo(torch.float32).max / 2:
        assert relative_error(back, exact[1]) < FFT[torch.float32]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["normal", "constant"])
def test_wgnc(name: str, size: int, scale: float) -> None:
    x = sample(name, size, scale)
    if python_ref.project_wgnc(x).isfinite().all():
        result = project_wgnc(x)
        assert float(result.double().norm()) == pytest.approx(math.sqrt(size), rel=1e-5)
        if name == "normal":  # the ties of the other are broken by rounding
            assert relative_error(result, python_ref.project_wgnc(x.double())) < 10 * FFT[torch.float32]


@pytest.mark.parametrize("scale", [1e35, 3e35])
def test_the_range_is_not_empty(scale: float) -> None:
    x = sample("normal", 65_536, scale)
    assert python_ref.compact_fourier(x).isfinite().all()
    assert compact_fourier(compact_fourier(x), inverse=True).isfinite().all()
