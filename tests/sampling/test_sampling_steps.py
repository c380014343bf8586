"""Schedules, and steps of the reverse SDE, which keep the marginals of Gaussian flows."""

import math
from itertools import pairwise

import pytest
import torch
from gaussian_flows import GaussianFlow, Marginal, after_steps, shifted, uniform

from noisetilt_kernels import sampling
from noisetilt_kernels.sampling import SCHEDULES, VP_SCHEDULES, SamplerOptions, Schedule
from noisetilt_kernels.sampling.steps import Step, advance, denoised, mean, plan_steps, score
from noisetilt_kernels.sampling.vp import at_vp_time

FLOWS = {
    "1-D": GaussianFlow([0.7], [[0.25]]),
    "1-D, wide": GaussianFlow([-2.0], [[2.25]]),
    "1-D, FLUX times": GaussianFlow([0.7], [[0.25]], shifted),
    "2-D": GaussianFlow([0.5, -1.0], [[0.5, 0.3], [0.3, 0.4]]),
}


def no_reward(images: torch.Tensor, prompts: object) -> torch.Tensor:
    return images.flatten(1).sum(dim=1)


def distance(a: Marginal, b: Marginal) -> float:
    """Return the largest difference in mean or covariance, relative to b's smallest deviation or variance."""
    smallest = float(torch.linalg.eigvalsh(b.covariance).min())
    return max(
        float((a.mean - b.mean).abs().max()) / math.sqrt(smallest),
        float((a.covariance - b.covariance).abs().max()) / smallest,
    )


# ---- schedules ----


def test_schedules_have_the_shapes_of_their_names() -> None:
    assert SCHEDULES == ("constant", "linear", "quadratic", "flow-grpo")
    for t in (0.02, 0.3, 0.9):
        assert Schedule("constant", 0.5).g(t) == 0.5
        assert Schedule("linear", 0.5).g(t) == pytest.approx(0.5 * t)
        assert Schedule("quadratic", 0.5).g(t) == pytest.approx(0.5 * t**2)
        assert Schedule("flow-grpo", 0.5).g(t) == pytest.approx(0.5 * math.sqrt(t / (1 - t)))
        for name in SCHEDULES:
            assert Schedule(name).sigma(t, 0.04) == pytest.approx(Schedule(name).g(t) * 0.2)


def test_flow_grpo_is_limited_near_noise() -> None:
    """The coefficient is constant above t = 0.96, for any number of steps."""
    schedule = Schedule("flow-grpo", 1.0)
    assert schedule.g(1.0) == schedule.g(0.99) == schedule.g(0.96) == pytest.approx(math.sqrt(24))


def test_default_scales() -> None:
    assert [Schedule(name).scale for name in SCHEDULES] == [0.7, 2.0, 3.0, 0.7]


# ---- one step ----


@pytest.mark.parametrize("t", [1.0, 0.5, 0.04])
@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_score_and_denoised_agree_with_the_gaussian(flow: GaussianFlow, t: float) -> None:
    """The score of N(m_t, C_t) is -C_t^-1 (x - m_t); x0_hat is the posterior mean."""
    x = torch.randn(5, *flow.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = flow.velocity(x, t, [])
    marginal = flow.marginal(t)
    whitened = torch.linalg.solve(marginal.covariance, (x - marginal.mean).T).T
    torch.testing.assert_close(score(x, v, t), -whitened)
    torch.testing.assert_close(denoised(x, v, t), flow.data.mean + (1 - t) * whitened @ flow.data.covariance)


def test_a_step_agrees_with_the_formula() -> None:
    x, v, noise = torch.tensor([[2.0]]), torch.tensor([[-3.0]]), torch.tensor([[0.5]])
    step = Step(0, t=0.5, delta=0.1, g=2.0, sigma=0.7)
    # s = -(2 + 0.5 * -3) / 0.5 = -1; mu = 2 + 0.3 + 0.5 * 4 * 0.1 * -1 = 2.1
    torch.testing.assert_close(mean(x, v, step), torch.tensor([[2.1]]))
    torch.testing.assert_close(advance(x, v, step, noise), torch.tensor([[2.45]]))


def test_the_plan_follows_the_times_and_ends_without_noise() -> None:
    flow = FLOWS["1-D, FLUX times"]
    plan = plan_steps("test", flow, 5, Schedule("linear", 2.0))
    times = shifted(5).tolist()
    assert [step.index for step in plan] == [0, 1, 2, 3, 4]
    assert [step.t for step in plan] == times[:-1]
    for step, after in zip(plan, times[1:], strict=True):
        assert step.t - step.delta == pytest.approx(after, abs=1e-15)
    for step in plan[:-1]:
        assert step.g == pytest.approx(2 * step.t)
        assert step.sigma == pytest.approx(2 * step.t * math.sqrt(step.delta))
    assert plan[-1].g == plan[-1].sigma == 0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_the_error_of_one_step_is_quadratic_in_its_length(flow: GaussianFlow, name: str) -> None:
    schedule, t = Schedule(name), 0.5
    errors = [
        distance(
            after_steps(flow, [Step(0, t, delta, schedule.g(t), schedule.sigma(t, delta))], flow.marginal(t)),
            flow.marginal(t - delta),
        )
        for delta in (0.02, 0.01, 0.005)
    ]
    assert errors[0] < 0.05
    for long, short in pairwise(errors):
        assert short < long / 3.5  # a quarter, up to higher orders


# ---- whole trajectories ----


@pytest.mark.parametrize("scale", [None, 0.0])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_marginals_are_kept_as_steps_get_shorter(flow: GaussianFlow, name: str, scale: float | None) -> None:
    """Exact moments of the discrete process converge to those of the flow at all times, to first order."""
    errors = []
    for count in (50, 200, 800):
        plan = plan_steps("test", flow, count, Schedule(name, scale))
        marginal, error = None, 0.0
        for step in plan:
            marginal = after_steps(flow, [step], marginal)
            error = max(error, distance(marginal, flow.marginal(step.t - step.delta)))
        errors.append(error)
    assert errors[-1] < 0.04
    for few, many in pairwise(errors):
        assert many < few / 3


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("variance", [0.04, 0.25, 1.0])
def test_25_steps_of_the_default_scales_keep_the_variance(variance: float, name: str) -> None:
    """The variance is exact within a seventh along the way, and within a tenth at the end."""
    flow = GaussianFlow([0.0], [[variance]])
    marginal, ratios = None, []
    for step in plan_steps("test", flow, 25, Schedule(name)):
        marginal = after_steps(flow, [step], marginal)
        ratios.append(float(marginal.covariance / flow.marginal(step.t - step.delta).covariance))
    assert all(abs(ratio - 1) < 1 / 7 for ratio in ratios), ratios
    assert abs(ratios[-1] - 1) < 1 / 10


@pytest.mark.parametrize("name", [*SCHEDULES, *VP_SCHEDULES])
@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_base_has_the_moments_of_the_discrete_process(flow: GaussianFlow, name: str) -> None:
    """Monte Carlo agrees with the exact recursion.

    For n samples of N(m, C) the standard error of a mean is sqrt(C_ii / n), and that of a covariance is
    sqrt((C_ii C_jj + C_ij^2) / n). An error of 4.5 standard errors occurs once in 150,000 times.
    """
    n, steps = 4000, 12
    result = sampling.base(
        flow, no_reward, [""] * n, steps=steps, schedule=name, options=SamplerOptions(seed=3, micro_batch=n)
    )
    expected = after_steps(flow, plan_steps("test", flow, steps, Schedule(name)))
    samples = result.latents.double()
    c = expected.covariance
    mean_error = (samples.mean(dim=0) - expected.mean).abs() / (c.diagonal() / n).sqrt()
    cov_error = (samples.T.cov().view_as(c) - c).abs() / (
        (c.diagonal().outer(c.diagonal()) + c**2) / n
    ).sqrt()
    assert float(mean_error.max()) < 4.5
    assert float(cov_error.max()) < 4.5


def test_base_without_noise_solves_the_ode() -> None:
    flow = FLOWS["2-D"]
    for name in SCHEDULES:
        result = sampling.base(
            flow, no_reward, [""] * 3, steps=7, schedule=Schedule(name, 0.0), options=SamplerOptions(seed=1)
        )
        times = uniform(7).tolist()
        for particle in range(3):
            x = sampling.noise.ParticleNoise(1, particle, flow.shape).draw()
            for t, after in pairwise(times):
                x = x - (t - after) * flow.velocity(x, t, [])
            assert torch.equal(result.latents[particle], x[0])


# ---- VP time ----


def vp_factors(rho: float) -> tuple[float, float]:
    """Return A and S of y = A x_0 + S eps."""
    integral = 0.5 * (20 - 0.1) * rho**2 + 0.1 * rho
    return math.exp(-integral / 2), math.sqrt(1 - math.exp(-integral))


VP_GRIDS = {
    "vp": (lambda share: 1 - share, lambda rho: 2 * rho - rho**2),
    "vp-quadratic": (lambda share: math.sqrt(1 - share**2), lambda rho: 3 * rho**2),
}


def test_vp_times_and_noise() -> None:
    """Times of the flow, and the coefficients that the noise of short steps has there."""
    for name, wanted in {
        "vp": [3.90, 2.53, 1.70, 0.85, 0.45, 0.21],
        "vp-quadratic": [11.7, 6.2, 3.4],
    }.items():
        _, gamma = VP_GRIDS[name]
        times = [0.9935, 0.983, 0.962, 0.859, 0.670, 0.419]
        for rho, t, g in zip([1, 0.9, 0.8, 0.6, 0.4, 0.2], times, wanted, strict=False):
            point = at_vp_time(rho)
            assert point.t == pytest.approx(t, abs=6e-4)
            assert gamma(rho) / (point.c * math.sqrt(point.t_slope)) == pytest.approx(g, rel=0.02)
    plan = plan_steps("test", FLOWS["1-D"], 25, Schedule("vp"))
    assert [step.t for step in plan] == [at_vp_time(1 - index / 25).t for index in range(25)]
    assert plan[0].start == pytest.approx(0.99349, abs=1e-5)
    assert {step.start for step in plan[1:]} == {1.0}
    rho = math.sqrt(1 - 0.4**2)
    assert plan_steps("test", FLOWS["1-D"], 10, Schedule("vp-quadratic"))[4].t == at_vp_time(rho).t


@pytest.mark.parametrize("scale", [None, 0.0])
@pytest.mark.parametrize("name", VP_SCHEDULES)
def test_a_vp_step_is_the_step_of_the_diffusion_model(name: str, scale: float | None) -> None:
    """In y = c x a step is y - d (c' x + c t' v) + gamma^2 d / 2 s_y + gamma sqrt(d) eps."""
    grid, gamma_of = VP_GRIDS[name]
    flow, n, h = FLOWS["2-D"], 7, 1e-5
    x, noise = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plan = plan_steps("test", flow, n, Schedule(name, scale))
    for step in plan[:-1]:
        rho, after = grid(step.index / n), grid((step.index + 1) / n)
        d, gamma = rho - after, 0.0 if scale == 0 else gamma_of(rho)

        def c_and_t(rho: float) -> tuple[float, float]:
            a, s = vp_factors(rho)
            return a + s, s / (a + s)

        (c, t), (c_after, t_after) = c_and_t(rho), c_and_t(after)
        ups, downs = c_and_t(rho + h), c_and_t(rho - h)
        c_slope, t_slope = ((up - down) / (2 * h) for up, down in zip(ups, downs, strict=True))
        assert step.t == pytest.approx(t, rel=1e-12)
        assert step.t - step.delta == pytest.approx(t_after, rel=1e-12)
        v = flow.velocity(x, t, [])
        y_score = score(x, v, t) / c
        y = (
            c * x
            - d * (c_slope * x + c * t_slope * v)
            + gamma**2 * d / 2 * y_score
            + gamma * math.sqrt(d) * noise
        )
        torch.testing.assert_close(advance(x, v, step, noise), y / c_after, rtol=1e-7, atol=1e-7)
    last = plan[-1]
    v = flow.velocity(x, last.t, [])
    torch.testing.assert_close(mean(x, v, last), denoised(x, v, last.t))
    assert (last.sigma, last.g, last.factors) == (0.0, 0.0, None)


@pytest.mark.parametrize("scale", [None, 0.0])
@pytest.mark.parametrize(("name", "most"), [("vp", 0.02), ("vp-quadratic", 0.25)])
def test_the_error_of_vp_falls_with_the_number_of_steps(name: str, most: float, scale: float | None) -> None:
    """Exact moments of the affine steps. The last step of "vp-quadratic" is long: it ends with x0_hat at 0.54
    for 25 steps, which lacks variance."""
    flow = GaussianFlow([0.5], [[0.25]])
    errors = [
        distance(after_steps(flow, plan_steps("test", flow, n, Schedule(name, scale))), flow.data)
        for n in (25, 100, 400)
    ]
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]
    assert errors[-1] < most
