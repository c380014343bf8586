"""WGNC for one-step models: the reward rises, and the latents satisfy the constraints of P."""

import math

import pytest
import torch
from bits import assert_same_bits
from gaussian_flows import LatentGenerator, brightness, left_half
from tolerances import BLOCK_NORM
from torch import Tensor

from noisetilt_kernels import python_ref, sampling
from noisetilt_kernels.sampling import SamplerOptions
from noisetilt_kernels.sampling.noise import ParticleNoise

SHAPE = (4, 16, 16)


def block_norms(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return the l1 norm and the energy of every block of 16 spectral coefficients, float64 (B, P) each."""
    magnitudes = python_ref.to_wgnc_spectrum(latents.flatten(1).double()).abs().unflatten(1, (-1, 16))
    return magnitudes.sum(dim=2), magnitudes.square().sum(dim=2)


@pytest.mark.parametrize("reward", [brightness, left_half])
def test_the_reward_rises_and_the_block_norms_stay(reward: sampling.Reward) -> None:
    result = sampling.wgnc(
        LatentGenerator(SHAPE),
        reward,
        [""] * 3,
        iterations=15,
        lr=0.1,
        options=SamplerOptions(seed=0, micro_batch=3),
    )
    for particle in range(3):
        course = [record.reward for record in result.records if record.particle == particle]
        assert len(course) == 16
        assert course[0] < course[5] < course[15] == result.rewards[particle]
    l1, energy = block_norms(result.latents)
    target = math.sqrt(math.pi) / 2 * 16
    # The remaining error comes from rounding in the latents and their FFT.
    tolerance = 10 * BLOCK_NORM[torch.complex64]
    torch.testing.assert_close(l1, torch.full_like(l1, target), rtol=tolerance, atol=0)
    torch.testing.assert_close(energy, torch.full_like(energy, 16.0), rtol=tolerance, atol=0)
    assert float(result.latents.flatten(1).norm(dim=1)[0]) == pytest.approx(math.sqrt(1024), rel=1e-5)


def test_wgnc_agrees_with_the_algorithm() -> None:
    """Two iterations agree with Adam as an explicit formula (Kingma and Ba, algorithm 1)."""
    model, lr, clip = LatentGenerator(SHAPE), 0.1, 0.03
    x = ParticleNoise(9, 0, SHAPE).draw()
    m = v = torch.zeros_like(x)

    def project(x: Tensor) -> Tensor:
        return torch.ops.noisetilt.project_wgnc(x.flatten(1)).view_as(x)

    for k in (1, 2):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(left_half(model.generate(leaf, [""]), [""]).sum(), leaf)
        direction = project(gradient)
        direction = direction * clip / direction.norm()
        m, v = 0.9 * m + 0.1 * direction, 0.999 * v + 0.001 * direction**2
        x = project(x + lr * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8))
    result = sampling.wgnc(
        model, left_half, "", iterations=2, lr=lr, clip=clip, options=SamplerOptions(seed=9)
    )
    torch.testing.assert_close(result.latents, x, rtol=1e-4, atol=1e-4)
    assert result.records[0].gradient_norm > 0
    assert 0 < result.records[0].cosine < 1


def test_without_projection_the_reward_rises_further_and_the_norms_change() -> None:
    """The test of the norms can fail: without projection they change."""
    options = SamplerOptions(seed=0)
    free = sampling.wgnc(
        LatentGenerator(SHAPE), brightness, "", iterations=15, lr=0.1, operator="identity", options=options
    )
    held = sampling.wgnc(LatentGenerator(SHAPE), brightness, "", iterations=15, lr=0.1, options=options)
    assert float(free.rewards) > float(held.rewards)
    _, energy = block_norms(free.latents)
    assert float((energy - 16).abs().max()) > 1


def test_clip_hardly_matters_with_adam() -> None:
    results = [
        sampling.wgnc(LatentGenerator(SHAPE), left_half, "", iterations=5, lr=0.1, clip=clip).latents
        for clip in (0.03, 1e9)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=0.01)


def test_an_iteration_without_gradient_leaves_the_latent_unchanged() -> None:
    calls = []

    def sometimes(images: Tensor, prompts: object) -> Tensor:
        calls.append(1)
        return left_half(images, []) * (math.nan if len(calls) == 2 else 1.0)

    options = SamplerOptions(seed=0, non_finite="plain_noise")
    result = sampling.wgnc(LatentGenerator(SHAPE), sometimes, "", iterations=2, lr=0.1, options=options)
    once = sampling.wgnc(LatentGenerator(SHAPE), left_half, "", iterations=1, lr=0.1, options=options)
    assert_same_bits(result.latents, once.latents)
    assert [record.fallback for record in result.records] == [None, "non-finite reward", None]
