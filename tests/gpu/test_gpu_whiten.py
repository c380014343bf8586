"""W on the GPU as a whole: it has the bits of W on the CPU for samples of 2^k values. For others it has the
reference's bits around torch's FFTs, and agrees with W on the CPU within the tolerances of DESIGN section 9.
"""

import math

import pytest
import torch
from bits import assert_same_bits
from device import (
    DEVICE,
    OF_MODELS,
    REAL,
    SMALL,
    assert_agrees,
    expected_mixing_domains,
    expected_project,
    on_cpu,
    ops,
    samples,
)
from inputs import noise, values
from tolerances import cosine
from torch import Tensor

import noisetilt_kernels as nt
from bench.inputs import FLUX, STRUCTURED, power_law
from noisetilt_kernels.config import WhiteningConfig
from noisetilt_kernels.python_ref import has_defined_fft

whiten = ops.whiten

SHAPES = [
    (16, 96, 170),
    (4, 128, 128),
    (32, 32, 32),
    (16, 128, 128),
    (16, 21, 60, 104),
    (65_536,),
    (2, 6, 10),
]


def peak(x: Tensor) -> float:
    """Return the largest |fft2(channel)|^2 of samples (..., H, W), scaled to mean 1."""
    power = torch.fft.fft2(x.double(), norm="ortho").abs().square()
    return float(power.max() / power.mean())


def on_gpu(x: Tensor, *args: object) -> Tensor:
    return whiten(x.to(DEVICE), *args).cpu()


def check_w(result: Tensor, x: Tensor, least: float) -> None:
    """Compare with W of x on the CPU: bits where the FFT is defined, else the cosine of every sample."""
    expected = on_cpu(whiten, x)
    if has_defined_fft(x[0].numel()):
        assert_agrees(result, expected)
    else:
        assert float(cosine(result, expected).min()) >= least


def check_stages(x: Tensor, config: WhiteningConfig) -> None:
    """Assert that W has the bits of the reference around the operator's FFTs."""
    y = ops.compact_fourier(expected_project(x, config).flatten(1).to(DEVICE)).cpu().view_as(x)
    y = ops.compact_fourier(expected_project(y, config).flatten(1).to(DEVICE), True).cpu().view_as(x)
    assert_agrees(nt.whiten(x.to(DEVICE), config), expected_mixing_domains(y, config))


@pytest.mark.parametrize(
    "name", ["noise", "1/k", "sinusoids", "repeated channel", "sparse spikes", "constant", "zero"]
)
@pytest.mark.parametrize("dtype", REAL)
def test_structured_latents(name: str, dtype: torch.dtype) -> None:
    made = {"noise": noise(1)[0], "constant": torch.full((16, 64, 64), 0.7), "zero": torch.zeros(16, 64, 64)}
    x = (made[name] if name in made else STRUCTURED[name](0)).to(dtype)[None]
    check_stages(x, OF_MODELS[16, 64, 64])


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", SMALL)
def test_small_samples(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    names = ("normal", "1/k", "few values", "spikes", "shifted")
    check_stages(samples(names, shape, dtype), SMALL[shape])


@pytest.mark.parametrize("shape", OF_MODELS)
def test_latents_of_models(shape: tuple[int, ...]) -> None:
    names = ("normal", "1/k") if math.prod(shape) < 1_000_000 else ("1/k",)  # the reference is slow
    check_stages(samples(names, shape), OF_MODELS[shape])


@pytest.mark.parametrize("dtype", REAL)
def test_noise(dtype: torch.dtype) -> None:
    x = noise(32, dtype=dtype)
    result = on_gpu(x)
    check_w(result, x, 0.999999)
    assert float(cosine(result, x).min()) > 0.99999


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_of_other_shapes(shape: tuple[int, ...]) -> None:
    x = noise(2, shape)
    check_w(on_gpu(x), x, 0.999999 if math.prod(shape) > 1000 else 0.9999)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5, 2.0])
def test_power_laws(beta: float, dtype: torch.dtype) -> None:
    x = torch.stack([power_law(beta, seed=seed) for seed in range(4)]).to(dtype)
    check_w(on_gpu(x), x, 0.999)


@pytest.mark.parametrize("shape", [(16, 96, 170), (4, 128, 128), (336, 60, 104)])
def test_power_laws_of_other_shapes(shape: tuple[int, ...]) -> None:
    x = power_law(1.0, shape).float()[None]
    check_w(on_gpu(x), x, 0.999)


@pytest.mark.parametrize("name", ["sinusoids", "repeated channel", "sparse spikes"])
def test_tied_and_sparse_inputs(name: str) -> None:
    x = torch.stack([STRUCTURED[name](seed) for seed in range(2)]).float()
    result = on_gpu(x)
    check_w(result, x, 1)
    for sample in result:
        assert peak(sample) < 60


@pytest.mark.parametrize("fill", [0.0, -0.0, 1.0, -1e30, 1e-40])
def test_constant_samples(fill: float) -> None:
    result = on_gpu(torch.full(FLUX, fill))
    assert bool(result.isfinite().all())
    assert float(result.norm()) == pytest.approx(256, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, *REAL])
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_samples_that_are_not_finite(special: float, dtype: torch.dtype) -> None:
    x = noise(3).to(dtype)
    untouched = on_gpu(x)
    x[1, 15, 63, 63] = special
    result = on_gpu(x)
    assert bool(result[1].isnan().all())
    assert_same_bits(result[::2], untouched[::2], "the other samples")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    x = torch.stack([noise(1)[0], power_law(1.0).float()]).to(dtype)
    assert_same_bits(on_gpu(x), on_gpu(x.float()).to(dtype))


def test_samples_of_a_batch_are_single_samples() -> None:
    x = torch.cat([noise(8), power_law(1.0).float()[None]])
    assert_same_bits(on_gpu(x), torch.cat([on_gpu(sample[None]) for sample in x]))


def test_strided_input() -> None:
    x = noise(2, (64, 64, 32)).to(DEVICE)
    for strided in (x.transpose(1, 3), x[:, ::4], x[:1, :16].expand(3, -1, -1, -1)):
        before = strided.clone()
        result = whiten(strided)
        assert_same_bits(result, whiten(strided.contiguous()))
        assert result.is_contiguous()
        assert_same_bits(strided, before, "the input")


def test_configurations() -> None:
    x = power_law(1.0).float().to(DEVICE)
    assert_same_bits(nt.whiten(x), whiten(x))
    assert_same_bits(nt.whiten(x, nt.preset("flux")), whiten(x, "flux"))
    assert (
        float(cosine(whiten(x, "flux", 1e-2)[None].cpu(), on_cpu(whiten, x.cpu(), "flux", 1e-2)[None]))
        >= 0.999
    )


def test_wgnc_keeps_most_of_noise() -> None:
    """DESIGN section 6: mean cosine 0.98937, minimum at least 0.988."""
    x = noise(200, (65_536,)).to(DEVICE)
    similarity = cosine(torch.ops.noisetilt.project_wgnc(x), x)
    assert float(similarity.mean()) == pytest.approx(0.98937, abs=2e-4)
    assert float(similarity.min()) >= 0.988


def test_many_tiny_samples() -> None:
    x = values("normal", (100_000, 1, 4, 4))
    result = on_gpu(x)
    assert bool(result.isfinite().all())
    assert_same_bits(result[:2000], on_cpu(whiten, x[:2000]))
