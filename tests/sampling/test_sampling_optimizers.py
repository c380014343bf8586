"""ReNO, PRNO, MPGR and the ablation of WGNC: their updates in closed form, and the iterate they return."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from bits import assert_same_bits
from gaussian_flows import LatentGenerator, left_half
from torch import Tensor

from noisetilt_kernels import sampling
from noisetilt_kernels.sampling import Result, SamplerOptions, regularizers
from noisetilt_kernels.sampling.noise import ParticleNoise
from noisetilt_kernels.sampling.regularizers import gradient_of, mpgr, prno

MODEL = LatentGenerator((4, 8, 8))
SIZE = 256


def reward_gradient(x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(left_half(MODEL.generate(leaf, [""]), [""]).sum(), leaf)[0]


def clipped(x: Tensor, clip: float) -> Tensor:
    return x * min(1.0, clip / float(x.norm()))


class Nesterov:
    """Stochastic gradient ascent with Nesterov's momentum 0.9, as an explicit formula."""

    def __init__(self, lr: float) -> None:
        self.lr, self.momentum = lr, None

    def __call__(self, x: Tensor, ascent: Tensor) -> Tensor:
        self.momentum = ascent if self.momentum is None else 0.9 * self.momentum + ascent
        return x + self.lr * (ascent + 0.9 * self.momentum)


class Adam:
    """Ascent by Adam without weight decay, as an explicit formula."""

    def __init__(self, lr: float) -> None:
        self.lr, self.k, self.m, self.v = lr, 0, 0.0, 0.0

    def __call__(self, x: Tensor, ascent: Tensor) -> Tensor:
        self.k += 1
        self.m, self.v = 0.9 * self.m + 0.1 * ascent, 0.999 * self.v + 0.001 * ascent**2
        return x + self.lr * (self.m / (1 - 0.9**self.k)) / ((self.v / (1 - 0.999**self.k)).sqrt() + 1e-8)


def project(x: Tensor) -> Tensor:
    return torch.ops.noisetilt.project_wgnc(x.flatten(1)).view_as(x)


def shuffled(stream: ParticleNoise, count: int) -> Tensor:
    return torch.stack([torch.from_numpy(stream.choices.permutation(SIZE)) for _ in range(count)])[None]


def reno_direction(x: Tensor, stream: ParticleNoise) -> Tensor:
    return reward_gradient(x) - 0.3 * (1 - (SIZE - 1) / x.norm() ** 2) * x


def prno_direction(x: Tensor, stream: ParticleNoise) -> Tensor:
    permutations = shuffled(stream, 3)
    return reward_gradient(x) - 0.3 * gradient_of(lambda x: prno(x, permutations), x)


def mpgr_direction(x: Tensor, stream: ParticleNoise) -> Tensor:
    permutations, gradient = shuffled(stream, 1), reward_gradient(x)
    ascent = gradient_of(lambda x: mpgr(x, permutations), x)
    return gradient - 0.3 * gradient.norm() * ascent / ascent.norm()


@pytest.mark.parametrize(
    ("sampler", "arguments", "optimizer", "direction", "after"),
    [
        (sampling.reno, {"weight": 0.3}, Nesterov, reno_direction, None),
        (sampling.prno, {"weight": 0.3, "shuffles": 3}, Adam, prno_direction, None),
        (sampling.mpgr, {"weight": 0.3}, Nesterov, mpgr_direction, None),
        *[
            (sampling.wgnc, {"project": what}, Adam, direction, after)
            for what, direction, after in (
                ("both", lambda x, _: project(reward_gradient(x)), project),
                ("gradient", lambda x, _: project(reward_gradient(x)), None),
                ("latent", lambda x, _: reward_gradient(x), project),
                ("neither", lambda x, _: reward_gradient(x), None),
            )
        ],
    ],
)
def test_iterations_agree_with_the_algorithm(
    sampler: Callable[..., Result],
    arguments: dict[str, Any],
    optimizer: type,
    direction: Callable[[Tensor, ParticleNoise], Tensor],
    after: Callable[[Tensor], Tensor] | None,
) -> None:
    stream = ParticleNoise(3, 0, MODEL.shape)
    x = stream.draw()
    move = optimizer(0.2)
    for _ in range(3):
        x = move(x, clipped(direction(x, stream), 0.02))
        x = x if after is None else after(x)
    options = SamplerOptions(seed=3)
    result = sampler(
        MODEL, left_half, "", iterations=3, lr=0.2, clip=0.02, answer="last", options=options, **arguments
    )
    moved = x - ParticleNoise(3, 0, MODEL.shape).draw()
    assert float((result.latents - x).norm() / moved.norm()) < 0.01
    assert result.nfe == len(result.records) == 4


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_permutations_in_parts_have_the_same_gradient(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sampling.prno(MODEL, left_half, "", iterations=2, lr=0.2, weight=3.0, shuffles=5)
    monkeypatch.setattr(regularizers, "_AT_ONCE", at_once * SIZE)
    result = sampling.prno(MODEL, left_half, "", iterations=2, lr=0.2, weight=3.0, shuffles=5)
    torch.testing.assert_close(result.latents, expected.latents)


@pytest.mark.parametrize("name", ["wgnc", "reno", "prno", "mpgr"])
def test_the_reward_rises_and_weights_hold_it_back(name: str) -> None:
    sampler = getattr(sampling, name)
    arguments = {"wgnc": {"lr": 0.1}, "prno": {"lr": 0.1, "shuffles": 3}}.get(name, {})
    result = sampler(MODEL, left_half, [""] * 2, iterations=15, options=SamplerOptions(seed=0), **arguments)
    for particle in range(2):
        course = [record.reward for record in result.records if record.particle == particle]
        assert course[0] < course[7] < course[15] == result.rewards[particle]
    if name != "wgnc":
        strong = sampler(
            MODEL, left_half, "", iterations=15, weight=1e6, answer="last",
            options=SamplerOptions(seed=0), **arguments,
        )  # fmt: skip
        assert float(strong.rewards) < float(result.rewards[0])


def test_reno_holds_the_norm() -> None:
    free, held = (
        sampling.reno(MODEL, left_half, "", iterations=40, clip=1.0, weight=weight, answer="last")
        for weight in (0.0, 0.01)
    )
    target = math.sqrt(SIZE - 1)
    assert abs(float(held.latents.norm()) - target) < 1 < abs(float(free.latents.norm()) - target)


# ---- the answer ----


class Scripted:
    """Reward with given values, call by call, and the gradient of `left_half`."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        rewards = left_half(images, prompts)
        return rewards - rewards.detach() + self.values.pop(0)


def iterates() -> list[Tensor]:
    return [
        sampling.reno(MODEL, left_half, "", iterations=count, answer="last").latents for count in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("values", "best"),
    [((1, 3, 2, 0), 1), ((1, 2, 2, 3), 3), ((4, 4, 4, 4), 0), ((1, 2, 5, 3), 2)],
)
def test_the_best_iterate_is_returned_with_its_reward(values: tuple[float, ...], best: int) -> None:
    """Regularizers do not count, and the first of several equal ones wins."""
    first = ParticleNoise(0, 0, MODEL.shape).draw()
    expected = [first, *iterates()][best]
    finished = []
    result = sampling.reno(
        MODEL, Scripted(*values), "", iterations=3, options=SamplerOptions(on_finished=finished.append)
    )
    assert_same_bits(result.latents, expected)
    assert float(result.rewards) == values[best] == result.records[-1].reward
    torch.testing.assert_close(finished[0].image, MODEL.generate(expected, [""])[0])
    assert [record.reward for record in result.records[:3]] == list(values[:3])
    last = sampling.reno(MODEL, Scripted(*values), "", iterations=3, answer="last")
    assert_same_bits(last.latents, iterates()[2])
    assert float(last.rewards) == values[3]


@pytest.mark.parametrize(
    ("values", "best"), [((math.nan, 1, 0), 1), ((2, math.nan, 1), 0), ((1, 2, math.nan), 1)]
)
def test_an_iterate_that_is_not_finite_is_not_the_best(values: tuple[float, ...], best: int) -> None:
    options = SamplerOptions(non_finite="plain_noise")
    result = sampling.reno(MODEL, Scripted(*values), "", iterations=2, options=options)
    assert float(result.rewards) == values[best]
    nothing = sampling.reno(MODEL, Scripted(*[math.nan] * 3), "", iterations=2, options=options)
    assert math.isnan(float(nothing.rewards))
    assert_same_bits(nothing.latents, ParticleNoise(0, 0, MODEL.shape).draw())
    assert [record.fallback for record in nothing.records] == ["non-finite reward"] * 2 + [None]
