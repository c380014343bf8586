"""FreeDoM: renoising keeps the marginals, its cost, and the scaling of its strength."""

import math

import pytest
import torch
from bits import assert_same_bits
from gaussian_flows import GaussianFlow, LatentFlow, Marginal, Spy, after_steps, brightness, left_half
from torch import Tensor

from noisetilt_kernels import sampling
from noisetilt_kernels.sampling import SamplerOptions, Schedule
from noisetilt_kernels.sampling.freedom import plan_passes, travelling_steps
from noisetilt_kernels.sampling.noise import ParticleNoise
from noisetilt_kernels.sampling.steps import advance, plan_steps, renoise

FLOW = GaussianFlow([0.5, -1.0], [[0.5, 0.3], [0.3, 0.4]])


def renoised(law: Marginal, s: float, t: float) -> Marginal:
    """Return the exact law of `renoise` for x of a Gaussian law; the map is affine in x and in the noise."""
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    a, b = float(renoise(one, s, t, zero)), float(renoise(zero, s, t, one))
    return Marginal(a * law.mean, a**2 * law.covariance + b**2 * torch.eye(len(law.mean)).double())


def assert_same_law(a: Marginal, b: Marginal) -> None:
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.covariance, b.covariance, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("s", "t"), [(0.1, 0.4), (0.36, 0.4), (0.9, 0.94), (0.0, 0.5), (0.5, 1.0)])
def test_renoising_carries_the_marginal_of_one_time_to_another(s: float, t: float) -> None:
    assert_same_law(renoised(FLOW.marginal(s), s, t), FLOW.marginal(t))


def test_renoising_twice_is_renoising_once() -> None:
    start = Marginal(torch.tensor([3.0, -7.0]).double(), torch.tensor([[2.0, 0.1], [0.1, 0.01]]).double())
    assert_same_law(renoised(renoised(start, 0.2, 0.3), 0.3, 0.7), renoised(start, 0.2, 0.7))


def test_renoising_to_the_start_forgets_everything() -> None:
    noise = torch.randn(2, 5)
    assert_same_bits(renoise(torch.full((2, 5), 1e6), 0.7, 1.0, noise), noise)


# ---- passes ----


@pytest.mark.parametrize(
    ("steps", "window", "expected"),
    [
        (25, (0.4, 0.7), range(10, 18)),
        (10, (0.3, 0.7), range(3, 7)),
        (100, (0.07, 0.29), range(7, 29)),  # 0.07 * 100 is a little more than 7, 0.29 * 100 less than 29
        (6, (0.0, 1.0), range(1, 5)),  # neither the last step nor the first one
        (25, (0.7, 0.4), range(18, 10)),
        (1, (0.0, 1.0), range(1, 0)),
    ],
)
def test_the_window_is_counted_from_the_data(
    steps: int, window: tuple[float, float], expected: range
) -> None:
    assert list(travelling_steps(steps, *window)) == list(expected)


def test_passes_repeat_the_steps_of_the_window() -> None:
    plan = plan_steps("test", FLOW, 5, Schedule("linear"))
    passes = plan_passes(plan, 3, range(1, 3))
    assert [step.t for step, _ in passes] == pytest.approx([1.0, 0.8, 0.6, 0.6, 0.6, 0.4, 0.4, 0.4, 0.2])
    assert [travels for _, travels in passes] == [False, False, True, True, False, True, True, False, False]
    assert [step.index for step, _ in passes] == list(range(9))


def test_25_steps_need_41_forwards() -> None:
    spy = Spy(LatentFlow(bend=0.1))
    result = sampling.freedom(spy, brightness, "")
    assert result.nfe == spy.entries == len(result.records) == 41
    times = [round(t, 2) for _, t, *_ in spy.calls]
    assert sorted(t for t in set(times) if times.count(t) == 3) == [round(0.04 * j, 2) for j in range(11, 19)]
    assert [record.t for record in result.records] == [t for _, t, *_ in spy.calls]


def test_an_unguided_pass_is_a_step_of_base_that_is_renoised() -> None:
    """Every pass agrees with its formula, with a push of the stated size."""
    model, strength, steps = LatentFlow(bend=0.2), 0.5, 5
    spy, stream = Spy(model), ParticleNoise(3, 0, model.shape)
    sampling.freedom(spy, left_half, "", strength=strength, steps=steps, options=SamplerOptions(seed=3))
    passes = plan_passes(
        plan_steps("test", model, steps, Schedule("linear")), 3, travelling_steps(steps, 0.4, 0.7)
    )
    assert [travels for _, travels in passes].count(True) == 4
    x = stream.draw()
    for (step, travels), (seen, t, *_) in zip(passes[:-1], spy.calls, strict=False):
        torch.testing.assert_close(seen, x)
        x = seen.requires_grad_()
        velocity = model.velocity(x, t, [""])
        (gradient,) = torch.autograd.grad(left_half(model.decode(x - t * velocity), [""]).sum(), x)
        push = strength * step.delta * velocity.norm() * gradient / gradient.norm()
        x = (advance(x, velocity, step, stream.draw()) + push).detach()
        if travels:
            x = renoise(x, t - step.delta, t, stream.draw())
    torch.testing.assert_close(spy.calls[-1][0], x)


# ---- laws and strengths ----


@pytest.mark.parametrize("travel", [3])
def test_travelling_without_guidance_keeps_the_law(travel: int) -> None:
    """Monte Carlo agrees with the exact moments of the steps and the renoising between them."""
    n, steps = 1000, 6
    result = sampling.freedom(
        FLOW,
        brightness,
        [""] * n,
        strength=0.0,
        travel=travel,
        travel_from=0.0,
        travel_to=1.0,
        steps=steps,
        options=SamplerOptions(seed=1, micro_batch=n),
    )
    law = None
    for step, travels in plan_passes(
        plan_steps("test", FLOW, steps, Schedule("linear")), travel, travelling_steps(steps, 0, 1)
    ):
        law = after_steps(FLOW, [step], law)
        if travels:
            law = renoised(law, step.t - step.delta, step.t)
    samples, c = result.latents.double(), law.covariance
    mean_error = (samples.mean(dim=0) - law.mean).abs() / (c.diagonal() / n).sqrt()
    cov_error = (samples.T.cov() - c).abs() / ((c.diagonal().outer(c.diagonal()) + c**2) / n).sqrt()
    assert float(mean_error.max()) < 4.5
    assert float(cov_error.max()) < 4.5


def test_a_scaled_strength_does_not_depend_on_the_scale_of_the_reward() -> None:
    model, options = LatentFlow(bend=0.1), SamplerOptions(seed=5)
    plain = sampling.freedom(model, left_half, "", steps=6, options=options)

    def larger(factor: float) -> sampling.Reward:
        return lambda images, prompts: factor * left_half(images, prompts)

    scaled = sampling.freedom(model, larger(64.0), "", steps=6, options=options)
    assert_same_bits(scaled.latents, plain.latents, "a power of two")
    scaled = sampling.freedom(model, larger(1e4), "", steps=6, options=options)
    torch.testing.assert_close(scaled.latents, plain.latents)
    unscaled = [
        sampling.freedom(model, larger(f), "", scaling="none", steps=6, options=options) for f in (1, 64)
    ]
    assert not torch.equal(unscaled[0].latents, unscaled[1].latents)


def test_an_unusable_gradient_leaves_a_plain_pass() -> None:
    """A gradient of zero, and a NaN from the fifth pass on: no push, also not that of the pass before."""
    model, options = LatentFlow(bend=0.1), SamplerOptions(seed=5, non_finite="plain_noise")
    plain = sampling.freedom(model, left_half, "", strength=0.0, steps=6, options=options)
    zero = sampling.freedom(model, lambda images, _: 0 * left_half(images, _), "", steps=6, options=options)
    assert_same_bits(zero.latents, plain.latents)
    assert [r.fallback for r in zero.records] == ["zero gradient"] * 9 + [None]

    def broken(from_call: int) -> sampling.Reward:
        calls = []

        def reward(images: Tensor, prompts: object) -> Tensor:
            calls.append(1)
            return left_half(images, prompts) * (math.nan if len(calls) > from_call else 1.0)

        return reward

    result = sampling.freedom(model, broken(4), "", steps=6, options=options)
    stopped = sampling.freedom(
        model, left_half, "", strength=lambda t: 0.02 * (t > 0.8), steps=6, options=options
    )
    assert_same_bits(result.latents, stopped.latents)
    assert [r.fallback for r in result.records] == [*[None] * 4, *["non-finite reward"] * 5, None]
