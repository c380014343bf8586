"""DNO: the gradient through all steps in closed form, its cost under checkpointing, and its updates."""

import math
from collections.abc import Sequence

import pytest
import torch
from bits import assert_same_bits
from gaussian_flows import GaussianFlow, LatentFlow, Spy, left_half
from torch import Tensor

from noisetilt_kernels import sampling
from noisetilt_kernels.sampling import SamplerOptions, Schedule
from noisetilt_kernels.sampling.noise import ParticleNoise
from noisetilt_kernels.sampling.steps import Step, advance, mean, plan_steps

STEPS = 5
WEIGHTS = torch.tensor([1.0, -2.0])


class LinearImages(GaussianFlow):
    """Gaussian flow with images that are the latents, so that a reward can be linear in x_0."""

    def decode(self, x0: Tensor) -> Tensor:
        return x0[:, None, None, :].expand(-1, 3, 1, -1)


FLOW = LinearImages([0.5, -1.0], [[0.5, 0.3], [0.3, 0.4]])


def linear(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the inner product of x_0 and WEIGHTS."""
    return (images[:, 0, 0] * WEIGHTS).sum(dim=1)


def gradients() -> list[Tensor]:
    """Return the gradient of `linear` in the start and in the noise of each step, by their affine maps.

    A step is x -> T x - f b + sigma z; see `gaussian_flows.after_steps`.
    """
    plan = plan_steps("test", FLOW, STEPS, Schedule("linear"))
    found, cotangent = [], WEIGHTS.double()
    for step in reversed(plan):
        matrix, _ = FLOW.linear_velocity(step.t)
        drift = 0.5 * step.g**2 * step.delta / step.t
        transfer = (1 - drift) * torch.eye(2).double() - (step.delta + drift * (1 - step.t)) * matrix
        if step.sigma:
            found.append(step.sigma * cotangent)
        cotangent = transfer.T @ cotangent
    return [cotangent, *reversed(found)]


def x0_of(model: LatentFlow | GaussianFlow, noise: list[Tensor], steps: int) -> Tensor:
    x = noise[0]
    plan: list[Step] = plan_steps("test", model, steps, Schedule("linear"))
    for step, z in zip(plan[:-1], noise[1:], strict=True):
        x = advance(x, model.velocity(x, step.t, [""]), step, z)
    return mean(x, model.velocity(x, plan[-1].t, [""]), plan[-1])


def test_the_gradient_is_that_of_the_affine_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """One ascent moves all noise along its gradient: x_0 changes as the map says, and so does the reward."""
    expected = gradients()
    options = SamplerOptions(seed=4)
    # plain gradient ascent in place of Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda z, lr, maximize: torch.optim.SGD(z, lr=lr, maximize=True))
    result = sampling.dno(
        FLOW, linear, "", iterations=1, lr=0.1, clip=1e9, steps=STEPS, answer="last", options=options
    )
    stream = ParticleNoise(4, 0, (2,))
    noise = [stream.draw() + 0.1 * gradient.float() for gradient in expected]
    torch.testing.assert_close(result.latents, x0_of(FLOW, noise, STEPS))
    size = math.sqrt(sum(float(gradient.square().sum()) for gradient in expected))
    assert result.records[0].gradient_norm == pytest.approx(size, rel=1e-5)
    gain = float(result.rewards) - result.records[0].reward
    assert gain == pytest.approx(0.1 * size**2, rel=1e-4)


def test_forwards_are_counted_once_under_checkpointing() -> None:
    """20 evaluations of 25 steps are 500 forwards. The backwards repeat all but those of the last one."""
    spy = Spy(LatentFlow(bend=0.1))
    result = sampling.dno(spy, left_half, ["", ""], options=SamplerOptions(micro_batch=2))
    assert result.nfe == spy.entries == 2 * 500
    assert spy.repeated == 2 * 19 * 25
    assert len(result.records) == 2 * 20


def test_updates_are_those_of_adam_with_one_clip_for_all_noise() -> None:
    model, clip = LatentFlow((3, 4, 4), bend=0.2), 1e-4
    stream = ParticleNoise(0, 0, model.shape)
    z = torch.stack([stream.draw() for _ in range(3)])
    m = v = torch.zeros_like(z)
    for k in (1, 2):
        leaf = z.clone().requires_grad_()
        rewards = left_half(model.decode(x0_of(model, list(leaf), 3)), [""])
        (gradient,) = torch.autograd.grad(rewards.sum(), leaf)
        assert float(gradient.norm()) > 2 * clip
        ascent = gradient * clip / gradient.norm()
        m, v = 0.9 * m + 0.1 * ascent, 0.999 * v + 0.001 * ascent**2
        z = z + 0.05 * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
    result = sampling.dno(
        model,
        left_half,
        "",
        iterations=2,
        lr=0.05,
        clip=clip,
        steps=3,
        answer="last",
        options=SamplerOptions(),
    )
    torch.testing.assert_close(result.latents, x0_of(model, list(z), 3), rtol=1e-3, atol=1e-4)


def test_the_reward_rises_and_the_best_iterate_is_returned() -> None:
    model, options = LatentFlow(bend=0.1), SamplerOptions(seed=1)
    result = sampling.dno(model, left_half, "", iterations=8, lr=0.05, steps=4, options=options)
    course = [record.reward for record in result.records]
    assert course == sorted(course) and course[0] < course[-1] == float(result.rewards)
    assert float(left_half(model.decode(result.latents), [""])) == pytest.approx(float(result.rewards))
    fallen = sampling.dno(
        model, left_half, "", iterations=1, lr=-0.0, steps=4, options=options
    )  # no move: the first of two equal iterates
    assert float(fallen.rewards) == course[0]
    assert result.records[-1].noise_peak is not None


def test_the_regularizer_holds_the_noise_back() -> None:
    model, common = LatentFlow((3, 8, 8)), {"iterations": 30, "lr": 0.1, "steps": 3, "answer": "last"}
    free, held = (
        sampling.dno(model, left_half, "", weight=weight, shuffles=2, **common) for weight in (0.0, 1.0)
    )
    start = free.records[0].reward
    assert start < float(held.rewards) < float(free.rewards)
    assert held.records[-1].noise_peak < free.records[-1].noise_peak


def test_a_reward_that_is_not_finite_leaves_the_noise_of_base() -> None:
    model = LatentFlow(bend=0.1)
    options = SamplerOptions(seed=2, non_finite="plain_noise", micro_batch=2)

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        factors = torch.tensor([math.nan if prompt == "bad" else 1.0 for prompt in prompts])
        return left_half(images, prompts) * factors

    result = sampling.dno(model, reward, ["", "bad"], iterations=2, steps=3, options=options)
    base = sampling.base(model, left_half, ["", ""], steps=3, options=options)
    alone = sampling.dno(model, left_half, "", iterations=2, steps=3, options=options)
    assert_same_bits(result.latents[1], base.latents[1])
    assert_same_bits(result.latents[0], alone.latents[0])
    assert [r.fallback for r in result.records if r.particle == 1] == ["non-finite reward"] * 2 + [None]
