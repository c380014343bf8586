"""Start points: the law of the pCNL chain, its cost, and NTRK from its states."""

import math
from collections.abc import Sequence

import pytest
import torch
from bits import assert_same_bits
from gaussian_flows import LatentFlow, Spy, left_half
from torch import Tensor

from noisetilt_kernels import sampling
from noisetilt_kernels.sampling import PCNL, SamplerOptions
from noisetilt_kernels.sampling.noise import ParticleNoise
from noisetilt_kernels.sampling.steps import plan_steps

ALPHA = 0.05
LINEAR, QUADRATIC = torch.tensor([1.5, -0.5]), torch.tensor([0.6, 3.0])


class Straight:
    """Flow with velocity 0: x0_hat is the latent itself, also at t = 1. Images are the latents."""

    shape, device = (2,), torch.device("cpu")

    def sigmas(self, n: int) -> Tensor:
        return torch.linspace(1, 0, n + 1, dtype=torch.float64)

    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        return 0 * x

    def decode(self, x0: Tensor) -> Tensor:
        return x0[:, None, None, :].expand(-1, 3, 1, -1)


def quadratic(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return alpha (c x - x D x / 2) with D diagonal: exp(r / alpha) N(0, I) has mean c / (1 + D)."""
    x = images[:, 0, 0]
    return ALPHA * (LINEAR * x - QUADRATIC * x**2 / 2).sum(dim=1)


def states_of(chain: PCNL, reward: sampling.Reward, n: int = 600) -> tuple[Tensor, float]:
    """Return the last states of n chains, and the share of accepted proposals."""
    options = SamplerOptions(seed=1, micro_batch=n)
    result = sampling.base(Straight(), reward, [""] * n, steps=1, start=chain, options=options)
    accepted = [record.acceptance for record in result.records if record.step < chain.iterations]
    return result.latents.double(), sum(accepted) / len(accepted)


@pytest.mark.parametrize("clip", [0.0, 0.7, 1e9])
def test_the_chain_has_the_tilted_law_for_every_drift(clip: float) -> None:
    """Also without a drift (pCN) and with one that is cut short."""
    x, _ = states_of(PCNL(25, ALPHA, clip=clip), quadratic)
    mean, variance = LINEAR / (1 + QUADRATIC), 1 / (1 + QUADRATIC)
    assert float(((x.mean(dim=0) - mean) / (variance / len(x)).sqrt()).abs().max()) < 4
    assert float(((x.var(dim=0) - variance) / (variance * math.sqrt(2 / len(x)))).abs().max()) < 4


def test_the_drift_raises_the_acceptance() -> None:
    few, many = (states_of(PCNL(20, ALPHA, clip=clip), quadratic, 300)[1] for clip in (0.0, 1e9))
    assert few < 0.7 < 0.8 < many < 1


def test_a_constant_reward_accepts_everything_and_keeps_the_noise() -> None:
    x, share = states_of(PCNL(10, ALPHA), lambda images, prompts: 0 * images.sum(dim=(1, 2, 3)))
    assert share == 1
    assert float(x.mean(dim=0).abs().max()) < 4 / math.sqrt(len(x))
    assert float((x.var(dim=0) - 1).abs().max()) < 4 * math.sqrt(2 / len(x))


def test_one_proposal_agrees_with_the_formula() -> None:
    """Metropolis-Hastings in its general form: densities of the two proposals as normal densities."""
    chain = PCNL(1, ALPHA, epsilon=0.9, clip=0.8)
    shrink = (1 - 0.9 / 4) / (1 + 0.9 / 4)
    spread = math.sqrt(1 - shrink**2)

    def at(x: Tensor) -> tuple[float, Tensor]:
        leaf = x.clone().requires_grad_()
        phi = (LINEAR * leaf - QUADRATIC * leaf**2 / 2).sum()
        (drift,) = torch.autograd.grad(phi, leaf)
        return float(phi.detach()), drift * min(1, 0.8 / float(drift.norm()))

    def log_proposal(a: Tensor, drift: Tensor, b: Tensor) -> float:
        center = shrink * a + spread * math.sqrt(0.9) / 2 * drift
        return -float(((b - center) ** 2).sum()) / (2 * spread**2)

    moved = 0
    for seed in range(40):
        stream = ParticleNoise(seed, 0, (2,))
        a = stream.draw()[0].double()
        phi_a, drift_a = at(a)
        b = shrink * a + spread * (stream.draw()[0].double() + math.sqrt(0.9) / 2 * drift_a)
        phi_b, drift_b = at(b)
        target = (phi_b - float(b @ b) / 2) - (phi_a - float(a @ a) / 2)
        ratio = target + log_proposal(b, drift_b, a) - log_proposal(a, drift_a, b)
        accepted = math.log(stream.choices.random()) < ratio
        moved += accepted
        result = sampling.base(
            Straight(), quadratic, "", steps=1, start=chain, options=SamplerOptions(seed=seed)
        )
        torch.testing.assert_close(result.latents[0].double(), b if accepted else a, rtol=1e-5, atol=1e-6)
        assert result.records[0].acceptance == accepted
        assert result.records[0].reward == pytest.approx(ALPHA * phi_a, abs=1e-6)
    assert 5 < moved < 35


# ---- cost, and samplers from the states ----


def test_ntrk_from_a_chain_needs_exactly_50_forwards() -> None:
    """25 proposals and 25 steps; best of 10 needs 500."""
    spy = Spy(LatentFlow(bend=0.1))
    result = sampling.ntrk(spy, left_half, "", start=PCNL(25), steps=25)
    assert result.nfe == spy.entries == len(result.records) == 50
    assert [record.step for record in result.records] == list(range(50))
    assert [t for _, t, *_ in spy.calls] == pytest.approx([1.0] * 26 + [1 - 0.04 * j for j in range(1, 25)])
    assert [record.t for record in result.records] == [1.0, *(t for _, t, *_ in spy.calls[1:])]
    options = SamplerOptions(micro_batch=10)
    ten = sampling.best_of_n(sampling.ntrk, spy, left_half, "", n=10, start=PCNL(25), options=options)
    assert ten.nfe == 500


@pytest.mark.parametrize("start", ["pcnl", PCNL(0)])
@pytest.mark.parametrize(
    ("sampler", "arguments"),
    [
        (sampling.base, {}),
        (sampling.ntrk, {}),
        (sampling.dps, {"strength": 300.0}),
        (sampling.freedom, {}),
        (sampling.svdd, {}),
    ],
)
def test_a_chain_of_no_iterations_is_plain_noise(
    sampler: object, arguments: dict[str, object], start: str | PCNL
) -> None:
    model, options = LatentFlow(bend=0.1), SamplerOptions(seed=3, micro_batch=2)
    common = {"steps": 4, "options": options, **arguments}
    plain = sampler(model, left_half, [""] * 3, **common)
    started = sampler(model, left_half, [""] * 3, start=start, **common)
    iterations = 25 if start == "pcnl" else 0
    assert torch.equal(started.latents, plain.latents) == (iterations == 0)
    assert started.nfe == plain.nfe + 3 * iterations
    if not iterations:
        assert_same_bits(started.latents, plain.latents)


def test_a_chain_raises_the_reward_of_the_start() -> None:
    """The rewards rise along the chain, and those of the images with them."""
    options = SamplerOptions(seed=0, micro_batch=20)
    model, prompts = LatentFlow(bend=0.5), [""] * 20
    plain = sampling.base(model, left_half, prompts, steps=2, options=options)
    result = sampling.base(
        model, left_half, prompts, steps=2, start=PCNL(20, alpha=1e-4, clip=10.0), options=options
    )
    means = [
        sum(record.reward for record in result.records if record.step == step) / 20 for step in (0, 10, 19)
    ]
    assert means == sorted(means) and means[0] < means[2]
    assert float(result.rewards.mean()) > float(plain.rewards.mean())


# ---- values that are not finite ----


def test_a_proposal_that_is_not_finite_is_rejected() -> None:
    calls = []

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        calls.append(1)
        return quadratic(images, prompts) * (math.nan if len(calls) in (2, 4) else 1.0)

    options = SamplerOptions(seed=0, non_finite="plain_noise")
    result = sampling.base(Straight(), reward, "", steps=1, start=PCNL(3, ALPHA), options=options)
    chain = result.records[:3]
    assert [record.acceptance for record in chain] == [False, True, False]
    bad = "non-finite reward of the proposal"
    assert [record.fallback for record in chain] == [bad, None, bad]
    with pytest.raises(sampling.NonFiniteError, match="base: non-finite reward at step 0 of particle 0"):
        calls.clear()
        sampling.base(Straight(), reward, "", steps=1, start=PCNL(3, ALPHA))


def test_a_chain_leaves_a_start_that_is_not_finite_and_stays_if_there_is_nothing_else() -> None:
    calls = []

    def first_is_bad(images: Tensor, prompts: Sequence[str]) -> Tensor:
        calls.append(1)
        return quadratic(images, prompts) * (math.nan if len(calls) == 1 else 1.0)

    options = SamplerOptions(seed=0, non_finite="plain_noise")
    result = sampling.base(Straight(), first_is_bad, "", steps=1, start=PCNL(1, ALPHA), options=options)
    assert result.records[0].acceptance and result.records[0].fallback == "non-finite reward"
    never = sampling.ntrk(
        Straight(), lambda images, _: math.nan * quadratic(images, _), "", operator="norm", steps=3,
        start=PCNL(4, ALPHA), options=options,
    )  # fmt: skip
    assert not any(record.acceptance for record in never.records[:4])
    assert [record.fallback for record in never.records] == ["non-finite reward"] * 6 + [None]


def test_a_chain_in_vp_time_has_the_noise_as_its_state() -> None:
    """The latents of the first step are a little smaller than noise, also those of a chain."""
    model, options = LatentFlow(bend=0.2), SamplerOptions(seed=5)
    arguments = {"steps": 3, "schedule": "vp", "options": options}
    spy = Spy(model)
    plain = sampling.base(spy, left_half, "", **arguments)
    x = ParticleNoise(5, 0, model.shape).draw()
    start = plan_steps("test", model, 3, sampling.Schedule("vp"))[0].start
    assert 0.99 < start < 0.995
    assert_same_bits(spy.calls[0][0], start * x)
    still = sampling.base(model, left_half, "", start=PCNL(0), **arguments)
    assert_same_bits(still.latents, plain.latents)
    spy = Spy(model)
    sampling.base(spy, left_half, "", start=PCNL(1, alpha=1e30), **arguments)
    stream = ParticleNoise(5, 0, model.shape)
    shrink = (1 - 0.125) / (1 + 0.125)
    proposal = shrink * stream.draw() + math.sqrt(1 - shrink**2) * stream.draw()
    torch.testing.assert_close(spy.calls[1][0], start * proposal)
