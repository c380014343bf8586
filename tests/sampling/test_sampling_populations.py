"""Weighted copies: resampling, weights in closed form, and the laws of the samplers that use them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from bits import assert_same_bits
from gaussian_flows import GaussianFlow, LatentFlow, Spy, after_steps, left_half
from torch import Tensor

from noisetilt_kernels import sampling
from noisetilt_kernels.sampling import (
    GuidedSteps,
    NonFiniteError,
    Result,
    SamplerOptions,
    SamplingRun,
    Schedule,
    stepwise,
)
from noisetilt_kernels.sampling.batch import Batch
from noisetilt_kernels.sampling.das import tempered
from noisetilt_kernels.sampling.fk import Potential, apply_potential
from noisetilt_kernels.sampling.gradients import flow_guidance
from noisetilt_kernels.sampling.noise import ParticleNoise
from noisetilt_kernels.sampling.population import Weights, log_ratio
from noisetilt_kernels.sampling.resampling import Resampling, rounding_by_name, ssp, systematic
from noisetilt_kernels.sampling.starts import PlainNoise, Point
from noisetilt_kernels.sampling.steps import Step, advance, plan_steps
from noisetilt_kernels.sampling.typicality import spectral_peaks

# ---- resampling ----

SHARES = {
    "mixed": [0.3, 2.2, 0.9, 0.6],
    "one heavy": [0.0, 4.0, 0.0, 0.0],
    "integers": [2.0, 0.0, 1.0, 1.0],
    "tiny": [1e-12, 2.5, 1.5 - 1e-12, 0.0],
    "halves": [0.5] * 6 + [2.5] * 2,
    "two": [0.25, 1.75],
    "one": [1.0],
}


def uniforms(seed: int) -> Callable[[], float]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: float(torch.rand((), generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("name", get_args(Resampling))
def test_children_are_the_share_rounded_and_unbiased(name: str, shares: list[float]) -> None:
    resample, draw, n = rounding_by_name("test", name), uniforms(0), 4000
    total = torch.zeros(len(shares))
    for _ in range(n):
        children = resample(shares, draw)
        assert sum(children) == len(shares)
        for count, share in zip(children, shares, strict=True):
            assert math.floor(share + 1e-9) <= count <= math.ceil(share - 1e-9)
        total += torch.tensor(children)
    fraction = torch.tensor([share % 1 for share in shares])
    error = (total / n - torch.tensor(shares)).abs()
    assert bool((error <= 4.5 * (fraction * (1 - fraction) / n).sqrt() + 1e-6).all())


@pytest.mark.parametrize("copies", [1, 2, 3, 7, 10, 49])
@pytest.mark.parametrize("name", get_args(Resampling))
def test_equal_weights_have_one_child_each(name: str, copies: int) -> None:
    """Also where the shares are not exactly 1, and for the smallest and the largest uniform number."""
    for draw in (lambda: 0.0, lambda: 1 - 2**-53, uniforms(1)):
        for share in (1.0, 1 - 2e-16, 1 + 4e-16):
            assert rounding_by_name("test", name)([share] * copies, draw) == [1] * copies


@pytest.mark.parametrize(("name", "draws"), [("systematic", 1), ("ssp", 3)])
def test_number_of_uniforms(name: str, draws: int) -> None:
    made: list[float] = []

    def draw() -> float:
        made.append(0.4)
        return 0.4

    rounding_by_name("test", name)(SHARES["mixed"], draw)
    assert len(made) == draws


def test_decisions_do_not_move_the_noise() -> None:
    plain, used = ParticleNoise(3, 1, (5,)), ParticleNoise(3, 1, (5,))
    first = used.choices.random()
    assert_same_bits(used.draw(2), plain.draw(2))
    assert first == plain.choices.random() != ParticleNoise(3, 2, (5,)).choices.random()
    assert first != ParticleNoise(4, 1, (5,)).choices.random()
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([3, 1])))  # that of the noise
    assert first != generator.random()


# ---- weights ----


def test_the_ratio_of_densities_is_that_of_float64() -> None:
    """-sigma <G, eps> - sigma^2 |G|^2 / 2 equals log N(x'; mu) - log N(x'; mu + sigma^2 G)."""
    torch.manual_seed(0)
    drift, noise, sigma = torch.randn(3, 4, 16, 16), torch.randn(3, 4, 16, 16), 0.3
    moved = sigma * noise.double() + sigma**2 * drift.double()
    own = -(((moved - sigma**2 * drift.double()) / sigma) ** 2).flatten(1).sum(dim=1) / 2
    base = -((moved / sigma) ** 2).flatten(1).sum(dim=1) / 2
    result = log_ratio(sigma, drift, noise)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, base - own, rtol=1e-11, atol=1e-9)


def test_the_mean_ratio_of_densities_is_one() -> None:
    torch.manual_seed(0)
    n = 20000
    drift = torch.tensor([1.5, -0.5]).expand(n, 2)
    ratios = log_ratio(0.6, drift, torch.randn(n, 2)).exp()
    assert abs(float(ratios.mean()) - 1) < 4 * float(ratios.std()) / math.sqrt(n)


def test_weights_permute_with_their_copies() -> None:
    """All of weights, sums and the ancestors of a heavy copy, bit for bit."""
    order = [3, 0, 4, 1, 2]
    steps = [[0.1, -2.0, 0.7, 1.3, 0.2], [0.5, 0.1, -0.3, 2.0, math.nan], [1.0, 0.0, 0.9, 0.4, 0.3]]
    ratios = [-0.3, 0.2, 0.01, -0.4, 0.5]
    plain, permuted = Weights.equal(5), Weights.equal(5)
    for twists in steps:
        plain.weigh(twists)
        plain.correct(ratios)
        permuted.weigh([twists[i] for i in order])
        permuted.correct([ratios[i] for i in order])
    assert permuted.logs == [plain.logs[i] for i in order]
    assert permuted.normalised == [plain.normalised[i] for i in order]
    assert (permuted.ess, permuted.log_mean) == (plain.ess, plain.log_mean)


def test_the_twists_follow_the_ancestors() -> None:
    """After resampling, the next twist is compared with that of the ancestor."""
    weights = Weights.equal(3)
    weights.weigh([0.0, 30.0, 1.0])
    assert weights.resample(systematic, lambda: 0.5) == [1, 1, 1]
    assert weights.logs == [0.0] * 3
    assert weights.log_z == pytest.approx(30 - math.log(3), abs=1e-9)
    weights.weigh([30.0, 31.0, 29.0])
    assert weights.logs == [0.0, 1.0, -1.0]


def test_tempering_telescopes() -> None:
    """Without resampling the weight is the last twist, times the ratios of densities."""
    weights, rewards = Weights.equal(2), torch.randn(6, 2, dtype=torch.float64).tolist()
    for share, reward in zip(tempered(6, 0.5), rewards, strict=True):
        weights.weigh([share * r / 0.1 for r in reward])
        weights.correct([0.25, -0.5])
    assert weights.logs == pytest.approx([rewards[-1][0] / 0.1 + 1.5, rewards[-1][1] / 0.1 - 3])


def test_tempering_rises_from_0_to_1() -> None:
    assert tempered(25, 0.87)[1] == pytest.approx(0.0324, abs=1e-4)  # the gamma of 25 steps
    assert tempered(100, 0.87)[1] == pytest.approx(0.008, abs=1e-4)  # that of the authors for 100 steps
    for steps in (2, 3, 8, 25):
        for tempering in (1e-12, 0.3, 0.87, 1.0):
            shares = tempered(steps, tempering)
            assert len(shares) == steps and shares[0] == 0 and shares[-1] == 1
            assert shares == sorted(shares)
    assert tempered(4, 0) == [1.0] * 4
    assert tempered(1, 0.87) == [1.0]


def test_a_copy_that_is_not_finite_has_weight_0_until_it_is_resampled() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        weights = Weights.equal(3)
        weights.weigh([1.0, bad, 2.0])
        weights.weigh([1.0, 5.0, 2.0])
        assert weights.normalised[1] == 0 and sum(weights.normalised) == pytest.approx(1)
        weights.weigh([math.nan, 5.0, bad])  # no copy with a weight is finite: the step is skipped
        assert weights.normalised[1] == 0 < weights.normalised[0]
        assert 1 not in weights.resample(ssp, lambda: 0.9)
        weights.weigh([3.0] * 3)
        assert min(weights.normalised) > 0


# ---- laws, on a flow where the reward is linear in x_0 ----


class LinearFlow(GaussianFlow):
    """Gaussian flow whose images show x_0 itself."""

    def decode(self, x0: Tensor) -> Tensor:
        return x0[:, None, None, :].expand(-1, 3, 1, -1)


def first_value(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0, 0, 0]


FLOW, STEPS, COPIES, RUNS = LinearFlow([0.7], [[0.25]]), 5, 8, 2000


def tilted(schedule: Schedule, alpha: float) -> tuple[float, float]:
    """Return Z = E[exp(x_0 / alpha)] of the law of `base`, and the mean of the law tilted by it."""
    law = after_steps(FLOW, plan_steps("test", FLOW, STEPS, schedule))
    m, s = float(law.mean), float(law.covariance)
    return math.exp(m / alpha + s / (2 * alpha**2)), m + s / alpha


def assert_unbiased(run: Callable[[Any, SamplerOptions], Result], alpha: float, schedule: Schedule) -> Result:
    """Check E[Z] and E[Z f] / Z over many runs, f the weighted mean, within 4 standard errors."""
    spy = Spy(FLOW)
    result = run(spy, SamplerOptions(seed=1, micro_batch=RUNS * COPIES))
    x, t, *_ = spy.calls[-1]
    x0 = (x - t * FLOW.velocity(x, t, [])).double().view(RUNS, COPIES)
    z, wanted_mean = tilted(schedule, alpha)
    estimates = result.log_z.exp() / z
    shifts = estimates * ((result.weights * x0).sum(dim=1) - wanted_mean)
    for errors in (estimates - 1, shifts):
        assert abs(float(errors.mean())) < 4 * float(errors.std()) / math.sqrt(RUNS)
    assert float(estimates.std()) / math.sqrt(RUNS) < 0.02  # so an error of 8 % is seen
    return result


LAWS = [
    # tempering, threshold, resampling
    (0.6, 1.0, "systematic"),
    (0.0, 0.5, "ssp"),
    *[
        pytest.param(tempering, threshold, resampling, marks=pytest.mark.slow)
        for tempering, threshold, resampling in [
            (0.0, 1.0, "systematic"),
            (0.3, 0.5, "systematic"),
            (0.6, 0.0, "systematic"),
            (0.6, 1.0, "ssp"),
            (0.87, 0.9, "systematic"),
        ]
    ],
]


@pytest.mark.parametrize(("tempering", "threshold", "resampling"), LAWS)
def test_das_estimates_z_and_the_tilted_mean(tempering: float, threshold: float, resampling: str) -> None:
    alpha, schedule = 0.35, Schedule("linear")

    def run(model: Any, options: SamplerOptions) -> Result:
        return sampling.das(
            model,
            first_value,
            [""] * RUNS,
            alpha=alpha,
            copies=COPIES,
            tempering=tempering,
            threshold=threshold,
            resampling=resampling,
            steps=STEPS,
            schedule=schedule,
            options=options,
        )

    result = assert_unbiased(run, alpha, schedule)
    ess = torch.tensor([record.ess for record in result.records]).view(STEPS, RUNS)
    assert float(ess.min()) >= 1 and float(ess.max()) <= COPIES
    torch.testing.assert_close(ess[-1], result.ess.float())
    resampled = (ess < threshold * COPIES)[:-1].any(dim=0).float().mean()
    assert (float(resampled) == 0) if threshold == 0 else (float(resampled) > 0.01)


@pytest.mark.parametrize(
    "guide",
    [
        GuidedSteps(every=2),
        GuidedSteps(from_t=0.7),
        pytest.param(GuidedSteps(until_t=0.5), marks=pytest.mark.slow),
        pytest.param(GuidedSteps(every=2, from_t=0.9), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("tempering", [0.6, 0.0])
def test_das_guided_at_a_part_of_the_steps_keeps_its_law(guide: GuidedSteps, tempering: float) -> None:
    alpha, schedule = 0.35, Schedule("linear")

    def run(model: Any, options: SamplerOptions) -> Result:
        return sampling.das(
            model,
            first_value,
            [""] * RUNS,
            alpha=alpha,
            copies=COPIES,
            tempering=tempering,
            threshold=0.9,
            steps=STEPS,
            schedule=schedule,
            guide=guide,
            options=options,
        )

    result = assert_unbiased(run, alpha, schedule)
    ess = [record.ess for record in result.records]
    assert any(one is not None and one < 0.9 * COPIES for one in ess[:-RUNS])  # some are resampled


@pytest.mark.slow
def test_das_estimates_z_and_the_tilted_mean_in_vp_time() -> None:
    alpha, schedule = 0.35, Schedule("vp")

    def run(model: Any, options: SamplerOptions) -> Result:
        prompts = [""] * RUNS
        arguments = {"copies": COPIES, "tempering": 0.6, "threshold": 1.0, "steps": STEPS}
        return sampling.das(
            model, first_value, prompts, alpha=alpha, schedule=schedule, options=options, **arguments
        )

    assert_unbiased(run, alpha, schedule)


@pytest.mark.parametrize(
    ("potential", "threshold"),
    [
        ("max", 1.0),
        ("difference", 0.5),
        *[pytest.param(*case, marks=pytest.mark.slow) for case in [("max", 0.0), ("sum", 1.0), ("sum", 0.5)]],
    ],
)
def test_fk_estimates_z_and_the_tilted_mean(potential: Potential, threshold: float) -> None:
    """The last potential corrects for all earlier ones."""
    alpha, schedule = 0.6, Schedule("linear")

    def run(model: Any, options: SamplerOptions) -> Result:
        return sampling.fk(
            model,
            first_value,
            [""] * RUNS,
            alpha=alpha,
            copies=COPIES,
            potential=potential,
            every=2,
            threshold=threshold,
            steps=STEPS,
            schedule=schedule,
            options=options,
        )

    result = assert_unbiased(run, alpha, schedule)
    weighed = {record.step for record in result.records if record.ess is not None}
    assert weighed == {1, 3, STEPS - 1}
    assert {record.step for record in result.records if record.reward is not None} == weighed


def test_potentials_accumulate_and_skip_what_is_not_finite() -> None:
    rewards = [[1.0, -2.0], [3.0, math.nan], [2.0, -4.0]]
    wanted = {
        "max": [[1.0, -2.0], [4.0, -2.0], [7.0, -4.0]],
        "sum": [[1.0, -2.0], [5.0, -2.0], [11.0, -8.0]],
        "difference": [[1.0, -2.0], [3.0, -2.0], [2.0, -4.0]],
    }
    for potential, expected in wanted.items():
        twists = torch.zeros(2, dtype=torch.float64)
        scores = torch.full_like(twists, -math.inf if potential == "max" else 0)
        for values, log_twists in zip(rewards, expected, strict=True):
            finite, scores, twists = apply_potential(potential, values, 0.5, scores, twists)
            assert finite.tolist() == [math.isfinite(value) for value in values]
            assert twists.tolist() == [2 * value for value in log_twists]


class SteepFlow(LinearFlow):
    """Linear velocity for which x0_hat depends on x at every time, also at t = 1, where it is x / 2."""

    def linear_velocity(self, t: float) -> tuple[Tensor, Tensor]:
        return torch.full((1, 1), 0.5 / (0.5 + t / 2)).double(), torch.zeros(1).double()


STEEP, START_ALPHA = SteepFlow([0.0], [[1.0]]), 0.8


class ExactStart(PlainNoise):
    """Start with the law N(0, 1) exp(r / alpha) of STEEP in closed form: N(1 / (2 alpha), 1)."""

    alpha = START_ALPHA

    def begin(self, batch: Batch, model: Any, step: Step, copies: int = 1) -> Point:
        return Point(batch.draw(copies) + 0.5 / self.alpha)


def assert_z_of_steep(result: Result, alpha: float) -> None:
    """Check E[Z] over many runs whose start counts as exp(r / START_ALPHA), within 4 standard errors."""
    law = after_steps(STEEP, plan_steps("test", STEEP, STEPS, Schedule("linear")))
    m, s = float(law.mean), float(law.covariance)
    wanted = m / alpha + s / (2 * alpha**2) - 0.125 / START_ALPHA**2
    estimates = (result.log_z - wanted).exp()
    error = float(estimates.std()) / math.sqrt(len(estimates))
    assert error < 0.02
    assert abs(float(estimates.mean()) - 1) < 4 * error


@pytest.mark.parametrize("guide", [GuidedSteps(), GuidedSteps(every=3), GuidedSteps(until_t=0.5)])
def test_the_rewards_of_a_start_do_not_count_twice(guide: GuidedSteps) -> None:
    result = sampling.das(
        STEEP,
        first_value,
        [""] * RUNS,
        alpha=1.2,
        copies=COPIES,
        tempering=0.0,
        threshold=0.9,
        steps=STEPS,
        start=ExactStart(),
        guide=guide,
        options=SamplerOptions(seed=2, micro_batch=RUNS * COPIES),
    )
    assert_z_of_steep(result, 1.2)


@pytest.mark.slow
@pytest.mark.parametrize("guide", [GuidedSteps(), GuidedSteps(every=2)])
def test_psi_estimates_z_from_its_chains(guide: GuidedSteps) -> None:
    """After 20 iterations the chains have forgotten their starts: 0.78^20 is 0.007."""
    result = sampling.psi(
        STEEP,
        first_value,
        [""] * RUNS,
        alpha=1.2,
        chain_alpha=START_ALPHA,
        copies=COPIES,
        chains=2,
        burn_in=20,
        kept=12,
        threshold=0.9,
        steps=STEPS,
        guide=guide,
        options=SamplerOptions(seed=2, micro_batch=RUNS * COPIES),
    )
    assert_z_of_steep(result, 1.2)


@pytest.mark.parametrize("threshold", [1.0, pytest.param(0.0, marks=pytest.mark.slow)])
def test_stage_2_of_psi_estimates_z_and_the_tilted_mean(threshold: float) -> None:
    """The start of an ideal flow is plain noise for every chain, because x0_hat is the mean of the data."""
    alpha, schedule = 0.35, Schedule("linear")

    def run(model: Any, options: SamplerOptions) -> Result:
        result = sampling.psi(
            model,
            first_value,
            [""] * RUNS,
            alpha=alpha,
            clip=2.0,
            copies=COPIES,
            chains=COPIES,
            burn_in=0,
            kept=1,
            threshold=threshold,
            steps=STEPS,
            schedule=schedule,
            options=options,
        )
        # the weights leave out exp(r / alpha) at the start
        return replace(result, log_z=result.log_z + float(FLOW.data.mean) / alpha)

    assert_unbiased(run, alpha, schedule)


# ---- one run against the formulas ----


def gradient_of(model: LatentFlow, x: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return velocities, rewards and gradients of r(x0_hat) at x, by one backward."""
    x = x.clone().requires_grad_()
    velocity = model.velocity(x, t, [])
    rewards = left_half(model.decode(x - t * velocity), [])
    (gradient,) = torch.autograd.grad(rewards.sum(), x)
    return velocity.detach(), rewards.detach().double(), gradient


def drawn(weights: Tensor, u: float) -> list[int]:
    """Return the ancestors of systematic resampling, by the first end of a share above each point."""
    ends = (weights / weights.sum()).cumsum(dim=0) * len(weights)
    return [int((ends > k + u).nonzero()[0]) for k in range(len(weights))]


def test_das_agrees_with_its_formulas() -> None:
    """The latents of every step, the answer, the weights and Z, with everything permuted after resampling."""
    model, alpha, copies, steps, threshold = LatentFlow(bend=0.2), 2e-3, 4, 6, 0.9
    spy, stream = Spy(model), ParticleNoise(4, 2, LatentFlow().shape)
    options = SamplerOptions(seed=4, first_particle=2, micro_batch=3)
    arguments = {"alpha": alpha, "copies": copies, "threshold": threshold, "tempering": 0.5}
    result = sampling.das(spy, left_half, "", steps=steps, options=options, **arguments)
    plan, shares = plan_steps("test", model, steps, Schedule("linear")), tempered(steps, 0.5)
    x = stream.draw(copies)
    log_w, log_psi, log_z, resampled = torch.zeros(copies).double(), torch.zeros(copies), 0.0, 0
    total, variance = torch.zeros_like(x), 0.0
    seen = iter(spy.calls)
    for step in plan:
        parts = [next(seen)[0], next(seen)[0]]  # micro-batches of 3 and 1
        torch.testing.assert_close(torch.cat(parts), x, rtol=1e-4, atol=1e-4)
        velocity, rewards, gradient = gradient_of(model, x, step.t)
        log_w = log_w + shares[step.index] * rewards / alpha - log_psi
        log_psi = shares[step.index] * rewards / alpha
        w = log_w.exp()
        assert result.records[step.index].ess == pytest.approx(float(w.sum() ** 2 / (w**2).sum()), rel=1e-3)
        assert result.records[step.index].reward == pytest.approx(float(rewards[w.argmax()]), rel=1e-4)
        if step is plan[-1]:
            break
        if w.sum() ** 2 / (w**2).sum() < threshold * copies:
            at = drawn(w, stream.choices.random())
            resampled += at != list(range(copies))
            log_z, log_w = log_z + float(w.mean().log()), torch.zeros(copies)
            x, velocity, gradient, log_psi = x[at], velocity[at], gradient[at], log_psi[at]
            total = total[at]
        noise, drift = stream.draw(copies), shares[step.index + 1] * gradient / alpha
        x = advance(x, velocity, step, noise) + step.sigma**2 * drift
        total = total + step.sigma * noise + step.sigma**2 * drift
        variance += step.sigma**2
        log_w = log_w - (step.sigma * drift * noise + step.sigma**2 / 2 * drift**2).double().flatten(1).sum(1)
    assert resampled >= 2 and len(set(w.tolist())) == copies
    torch.testing.assert_close(
        result.latents, (x - step.t * velocity)[[int(w.argmax())]], rtol=1e-4, atol=1e-4
    )
    (peak,) = spectral_peaks(total[[int(w.argmax())]] / math.sqrt(variance))
    assert result.records[-1].noise_peak == pytest.approx(peak, rel=1e-3)
    torch.testing.assert_close(result.weights[0], w / w.sum(), rtol=1e-3, atol=1e-4)
    assert float(result.log_z) == pytest.approx(log_z + float(w.mean().log()), rel=1e-3)


@pytest.mark.parametrize("potential", get_args(Potential))
def test_fk_agrees_with_its_formulas(potential: Potential) -> None:
    """The weights of a copy depend on the rewards of its own path, also after resampling."""
    model, alpha, copies, steps = LatentFlow(bend=0.2), 0.02, 4, 6
    spy, stream = Spy(model), ParticleNoise(1, 0, LatentFlow().shape)
    result = sampling.fk(
        spy,
        left_half,
        "",
        alpha=alpha,
        copies=copies,
        potential=potential,
        every=1,
        threshold=1.0,
        steps=steps,
        options=SamplerOptions(seed=1, micro_batch=copies),
    )
    x, paths = stream.draw(copies), torch.zeros(copies, 0, dtype=torch.float64)
    for step, (seen, t, *_) in zip(
        plan_steps("test", model, steps, Schedule("linear")), spy.calls, strict=True
    ):
        torch.testing.assert_close(seen, x, rtol=1e-4, atol=1e-4)
        velocity = model.velocity(x, t, [])
        rewards = left_half(model.decode(x - t * velocity), []).double()
        log_psi_before = log_psi_of(potential, paths) / alpha
        paths = torch.cat([paths, rewards[:, None]], dim=1)
        log_psi = rewards / alpha if step.sigma == 0 else log_psi_of(potential, paths) / alpha
        w = (log_psi - log_psi_before).exp()
        assert result.records[step.index].ess == pytest.approx(float(w.sum() ** 2 / (w**2).sum()), rel=1e-3)
        if step.sigma:
            at = drawn(w, stream.choices.random())
            paths = paths[at]
            x = advance(x[at], velocity[at], step, stream.draw(copies))
    torch.testing.assert_close(result.weights[0], w / w.sum(), rtol=1e-3, atol=1e-4)


def log_psi_of(potential: Potential, paths: Tensor) -> Tensor:
    """Return the sum of the potentials of all times, for the rewards (K, times) of the paths."""
    if potential == "difference":
        return paths[:, -1] if paths.shape[1] else torch.zeros(len(paths)).double()
    sums = paths.cummax(dim=1).values if potential == "max" else paths.cumsum(dim=1)
    return sums.sum(dim=1)


# ---- Psi-Sampler ----


def test_copies_start_at_equal_distances_of_their_chains() -> None:
    """Also their velocities, rewards and gradients are those of the states."""
    model, options = LatentFlow(bend=0.2), SamplerOptions(micro_batch=8)
    chain = {"chain_alpha": 1e30, "chains": 2, "burn_in": 1, "kept": 4}  # accepts everything
    run = stepwise("psi", model, left_half, ["", ""], alpha=1.0, copies=4, steps=4, options=options, **chain)
    states = [next(run).latents for _ in range(5)]
    assert run.nfe == 2 * 2 * 6
    all_states = [step.latents for step, _ in zip(chains_alone(model, options), range(5), strict=False)]
    for alone, state in zip(all_states[:4], states[:4], strict=True):
        assert_same_bits(alone, state)
    assert not any(torch.equal(all_states[n], all_states[n + 1]) for n in range(4))
    x = states[4].view(2, 2, 2, *model.shape)  # particle, chain, state
    assert_same_bits(x[:, :, 0].flatten(0, 1), all_states[2])
    assert_same_bits(x[:, :, 1].flatten(0, 1), all_states[4])

    # what is known there is not computed again, and is right
    plan = plan_steps("test", model, 4, Schedule("linear"))
    known = run._state.known
    fresh = flow_guidance(run._particles.batch(0), model, states[4], plan[0])
    assert_same_bits(known.output, fresh.output)
    assert_same_bits(known.gradient, fresh.gradient)
    assert (known.rewards, known.norms) == (fresh.rewards, fresh.norms)


def chains_alone(model: LatentFlow, options: SamplerOptions) -> SamplingRun:
    """Return a run whose first five steps are those of two chains of each of two particles."""
    chain = sampling.PCNL(5, alpha=1e30)
    return stepwise("das", model, left_half, ["", ""], alpha=1.0, copies=2, start=chain, options=options)


def test_psi_with_one_copy_is_das_from_a_chain() -> None:
    model, options = LatentFlow(bend=0.2), SamplerOptions(seed=3, micro_batch=2)
    arguments = {"alpha": 1e-3, "copies": 1, "options": options}
    chain = sampling.PCNL(3, alpha=2e-3, epsilon=0.4, clip=0.3)
    psi = sampling.psi(
        model,
        left_half,
        ["", ""],
        clip=1e9,
        chains=1,
        burn_in=2,
        kept=1,
        chain_alpha=2e-3,
        chain_epsilon=0.4,
        chain_clip=0.3,
        **arguments,
    )
    das = sampling.das(model, left_half, ["", ""], tempering=0.0, start=chain, **arguments)
    assert_same_bits(psi.latents, das.latents)
    assert_same_bits(psi.log_z, das.log_z)
    assert psi.nfe == das.nfe == 2 * (4 + 24)
    assert [record.t for record in psi.records[::2]][:4] == [1.0] * 4


def test_the_answer_of_psi_is_the_copy_of_largest_reward() -> None:
    spy, n, arguments = Spy(FLOW), 50, {"alpha": 0.5, "copies": 4, "threshold": 0.0, "steps": 3}
    options = SamplerOptions(micro_batch=4 * n)
    result = sampling.psi(
        spy, first_value, [""] * n, chains=4, burn_in=0, kept=1, options=options, **arguments
    )
    x, t, *_ = spy.calls[-1]
    rewards = (x - t * FLOW.velocity(x, t, [])).view(n, 4)
    assert result.rewards.tolist() == rewards.max(dim=1).values.tolist()
    assert result.nfe == spy.entries == n * (4 * 2 + 4 * 2)
    assert bool((result.weights.argmax(dim=1) != rewards.argmax(dim=1)).any())  # the answer of das differs
    das = sampling.das(spy, first_value, [""] * n, options=options, **arguments)
    x, t, *_ = spy.calls[-1]
    rewards = (x - t * FLOW.velocity(x, t, [])).view(n, 4)
    heaviest = das.weights.argmax(dim=1, keepdim=True)
    assert das.rewards.tolist() == rewards.gather(1, heaviest).flatten().tolist()


def test_the_drift_of_psi_is_clipped() -> None:
    """Chains without a drift start the same path at the same points, whatever the limit of the copies is."""
    model, paths = LatentFlow(bend=0.2), []
    for clip in (0.0, 0.5):
        spy = Spy(model)
        sampling.psi(
            spy,
            left_half,
            "",
            alpha=1e-4,
            clip=clip,
            chain_clip=0.0,
            copies=2,
            chains=2,
            threshold=0.0,
            steps=2,
            options=SamplerOptions(micro_batch=2),
        )
        paths.append(spy.calls)
    assert_same_bits(paths[0][-2][0], paths[1][-2][0])
    shifts = (paths[1][-1][0] - paths[0][-1][0]).flatten(1).norm(dim=1)
    step = plan_steps("test", model, 2, Schedule("linear"))[0]
    torch.testing.assert_close(shifts, torch.full_like(shifts, 0.5 * step.sigma**2), rtol=1e-3, atol=0)


# ---- values that are not finite ----


class OneBad:
    """Reward left_half that is NaN for some entries of a call of the reward with a whole population."""

    def __init__(self, bad: Sequence[int], from_call: int = 0, to_call: int = 1000) -> None:
        self.bad, self.from_call, self.to_call, self.calls = bad, from_call, to_call, 0

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        rewards = left_half(images, prompts)
        self.calls += 1
        if not self.from_call < self.calls <= self.to_call or len(rewards) == 1:
            return rewards
        factors = torch.tensor([math.nan if entry in self.bad else 1.0 for entry in range(len(rewards))])
        return rewards * factors


PLAIN = SamplerOptions(seed=3, micro_batch=4, non_finite="plain_noise")


@pytest.mark.parametrize(("sampler", "more"), [(sampling.das, {}), (sampling.fk, {"every": 1})])
def test_a_copy_with_nan_has_weight_0_and_a_record(
    sampler: Callable[..., Result], more: dict[str, Any]
) -> None:
    model = LatentFlow(bend=0.2)
    arguments = {"alpha": 0.01, "copies": 3, "steps": 4, "threshold": 0.0, **more}
    for bad in (0, 1, 2):
        result = sampler(model, OneBad([bad], from_call=2), "", options=PLAIN, **arguments)
        weights = result.weights[0].tolist()
        assert weights[bad] == 0 and sum(weights) == pytest.approx(1)
        assert min(weights[:bad] + weights[bad + 1 :]) > 0
        reasons = [record.fallback for record in result.records]
        assert reasons == [None, None] + ["non-finite reward of 1 of 3 copies"] * 2
        assert math.isfinite(result.rewards[0])
        once = sampler(model, OneBad([bad], 2, to_call=3), "", options=PLAIN, **arguments)
        assert once.weights[0][bad] == 0 and once.records[-1].fallback is None
    with pytest.raises(NonFiniteError, match="non-finite reward at step 2 of particle 0"):
        options = SamplerOptions(micro_batch=4)
        sampler(model, OneBad([1], from_call=2), "", options=options, **arguments)


def test_a_start_whose_rewards_are_all_nan_counts_as_noise() -> None:
    arguments = {"alpha": 0.01, "copies": 3, "steps": 4, "threshold": 0.0, "tempering": 0.0}
    model, start = LatentFlow(bend=0.2), sampling.PCNL(0, alpha=0.02)
    result = sampling.das(model, OneBad([0, 1, 2], to_call=1), "", start=start, options=PLAIN, **arguments)
    assert min(result.weights[0].tolist()) > 0
    plain = sampling.das(model, OneBad([0, 1, 2], to_call=1), "", options=PLAIN, **arguments)
    assert_same_bits(result.latents, plain.latents)
    assert_same_bits(result.log_z, plain.log_z)


def test_a_final_nan_of_one_copy_is_an_error_after_the_others_are_finished() -> None:
    """Also if another copy would be the answer."""
    spy, arguments = Spy(LatentFlow()), {"alpha": 1e-3, "copies": 2, "steps": 4}
    found = sampling.das(spy, left_half, [""] * 3, options=SamplerOptions(micro_batch=6), **arguments)
    x, t, *_ = spy.calls[-1]
    finals = left_half(spy.decode(x - t * spy.model.velocity(x, t, [])), [])
    bad = finals[2 + int(found.weights[1].argmin())]

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        rewards = left_half(images, prompts)
        return torch.where(rewards == bad, math.nan, rewards)

    finished = []
    options = SamplerOptions(micro_batch=6, on_finished=lambda one: finished.append(one.particle))
    with pytest.raises(NonFiniteError, match="non-finite reward at step 3 of particle 1"):
        sampling.das(LatentFlow(), reward, [""] * 3, options=options, **arguments)
    assert finished == [0, 2]
    plain = replace(options, non_finite="plain_noise")
    result = sampling.das(LatentFlow(), reward, [""] * 3, options=plain, **arguments)
    assert_same_bits(result.latents, found.latents)
    assert sorted(result.weights[1].tolist()) == [0, 1]


def test_a_copy_with_nan_is_replaced_when_resampled() -> None:
    spy = Spy(LatentFlow(bend=0.2))
    result = sampling.das(spy, OneBad([1]), "", alpha=1e6, copies=3, steps=3, threshold=1.0, options=PLAIN)
    assert [record.ess for record in result.records] == pytest.approx([2, 2, 2])
    x, _, *_ = spy.calls[1]
    velocity = spy.model.velocity(spy.calls[0][0], 1.0, [])
    stream = ParticleNoise(3, 0, spy.shape)
    start, noise = stream.draw(3), stream.draw(3)
    step = plan_steps("test", spy.model, 3, Schedule("linear"))[0]
    at = drawn(torch.tensor([1.0, 0.0, 1.0]).double(), stream.choices.random())
    assert 1 not in at
    torch.testing.assert_close(x, advance(start[at], velocity[at], step, noise))


def test_copies_that_are_all_nan_move_by_plain_noise() -> None:
    model = LatentFlow(bend=0.2)
    spy, stream = Spy(model), ParticleNoise(3, 0, model.shape)
    result = sampling.das(
        spy, OneBad([0, 1, 2]), "", alpha=1e-3, copies=3, steps=4, threshold=1.0, options=PLAIN
    )
    x = stream.draw(3)
    for step, (seen, *_) in zip(plan_steps("test", model, 4, Schedule("linear")), spy.calls, strict=True):
        assert_same_bits(seen, x)
        x = advance(x, model.velocity(x, step.t, []), step, stream.draw(3))
    assert [record.fallback for record in result.records] == ["non-finite reward of 3 of 3 copies"] * 4
    assert result.weights[0].tolist() == [1 / 3] * 3
    alone = sampling.das(model, lambda i, p: left_half(i, p) * math.nan, "", alpha=1, copies=1, options=PLAIN)
    assert_same_bits(alone.latents, sampling.base(model, left_half, "", options=PLAIN).latents)
    assert {record.fallback for record in alone.records} == {"non-finite reward"}
