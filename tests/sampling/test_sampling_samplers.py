"""Samplers: their steps against the formulas, their cost, and the independence of particles."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from bits import assert_same_bits
from gaussian_flows import GaussianFlow, LatentFlow, LatentGenerator, Spy, brightness, left_half
from torch import Tensor

from noisetilt_kernels import confidence_table, preset, python_ref, sampling
from noisetilt_kernels.sampling import OPERATORS, Result, SamplerOptions, Schedule
from noisetilt_kernels.sampling.noise import ParticleNoise
from noisetilt_kernels.sampling.operators import operator_by_name
from noisetilt_kernels.sampling.steps import mean, plan_steps

# Every sampler of flows, with arguments that make it guide.
FLOW_SAMPLERS: dict[str, tuple[Callable[..., Result], dict[str, Any]]] = {
    "base": (sampling.base, {}),
    **{f"ntrk {name}": (sampling.ntrk, {"rho": 0.3, "operator": name}) for name in OPERATORS},
    "dps": (sampling.dps, {"strength": 300.0}),
    "freedom": (sampling.freedom, {"strength": 300.0, "scaling": "none"}),
    "svdd": (sampling.svdd, {"candidates": 3}),
    "rbf": (sampling.rbf, {"budget": 60, "starts": 4}),
    "das": (sampling.das, {"alpha": 1e-4, "copies": 3}),
    "fk": (sampling.fk, {"alpha": 1e-4, "copies": 3, "every": 1}),
    "psi": (
        sampling.psi,
        {"alpha": 1e-4, "clip": 10.0, "copies": 4, "chains": 2, "burn_in": 1, "kept": 2},
    ),
    "dno": (sampling.dno, {"iterations": 2, "lr": 0.05}),
}

STEPS = 4

# A chain of 3 iterations before the first step.
FLOW_SAMPLERS |= {
    f"{name} from pcnl": (sampler, {**arguments, "start": sampling.PCNL(3, alpha=0.01)})
    for name, (sampler, arguments) in list(FLOW_SAMPLERS.items())
    if name in ("base", "ntrk w", "freedom", "svdd", "das")
}

FORWARDS = {
    "svdd": 1 + 3 * (STEPS - 1),
    "freedom": STEPS + 2,
    "dno": 3 * STEPS,
    "rbf": 60,
    "das": 3 * STEPS,
    "fk": 3 * STEPS,
    "psi": 2 * 4 + 4 * (STEPS - 1),
}
"""Forwards of a particle, if they are not one for each step. FreeDoM makes one of four steps three times."""
FORWARDS |= {
    f"{name} from pcnl": FORWARDS.get(name, STEPS) + 3 * arguments.get("copies", 1)
    for name, (_, arguments) in FLOW_SAMPLERS.items()
}


# Every sampler of one-step models.
ONE_STEP: dict[str, tuple[Callable[..., Result], dict[str, Any]]] = {
    "wgnc": (sampling.wgnc, {"lr": 0.1}),
    "wgnc, best": (sampling.wgnc, {"lr": 0.1, "project": "latent", "answer": "best"}),
    "reno": (sampling.reno, {}),
    "prno": (sampling.prno, {"lr": 0.1, "shuffles": 2}),
    "mpgr": (sampling.mpgr, {}),
}
EVERY = [*FLOW_SAMPLERS, *ONE_STEP]


def run_sampler(name: str, prompts: Sequence[str], options: SamplerOptions | None = None) -> Result:
    """Run the named sampler for a few steps."""
    if name in ONE_STEP:
        sampler, arguments = ONE_STEP[name]
        return sampler(LatentGenerator(), left_half, prompts, iterations=3, options=options, **arguments)
    sampler, arguments = FLOW_SAMPLERS[name]
    return sampler(LatentFlow(bend=0.1), left_half, prompts, steps=STEPS, options=options, **arguments)


# ---- noise ----


def test_seed_and_number_determine_a_particle() -> None:
    shape = (4, 16, 16)
    several = ParticleNoise(5, 2, shape).draw(3)
    single = ParticleNoise(5, 2, shape)
    assert_same_bits(torch.cat([single.draw() for _ in range(3)]), several)
    assert several.dtype == torch.float32 and several.shape == (3, *shape)
    for seed, particle in ((5, 1), (4, 2), (2, 5), (5 + 2**32, 2)):
        assert not torch.equal(ParticleNoise(seed, particle, shape).draw(3), several)
    assert abs(float(several.mean())) < 4.5 / math.sqrt(several.numel())
    assert abs(float(several.square().mean()) - 1) < 4.5 * math.sqrt(2 / several.numel())


@pytest.mark.parametrize("name", EVERY)
def test_results_depend_neither_on_micro_batches_nor_on_other_particles(name: str) -> None:
    """Latents, rewards and records agree bit for bit, except for the seconds."""

    def seen(result: Result) -> dict[tuple[int, int], tuple[Any, ...]]:
        return {
            (r.particle, r.step): (r.t, r.reward, r.gradient_norm, r.cosine, r.fallback, r.ess)
            for r in result.records
        }

    whole = run_sampler(name, [""] * 7, SamplerOptions(seed=2, micro_batch=7))
    for micro_batch in (1, 2, 3, 100):
        result = run_sampler(name, [""] * 7, SamplerOptions(seed=2, micro_batch=micro_batch))
        assert_same_bits(result.latents, whole.latents, f"micro-batches of {micro_batch}")
        assert_same_bits(result.rewards, whole.rewards, f"micro-batches of {micro_batch}")
        assert seen(result) == seen(whole)
        assert result.nfe == whole.nfe
    later = run_sampler(name, [""] * 2, SamplerOptions(seed=2, micro_batch=2, first_particle=4))
    assert_same_bits(later.latents, whole.latents[4:6], "particles 4 and 5 alone")
    assert {record.particle for record in later.records} == {4, 5}
    other = run_sampler(name, [""], SamplerOptions(seed=3))
    assert not torch.equal(other.latents[0], whole.latents[0])


def test_every_particle_has_its_prompt() -> None:
    prompts = ["bright", "dark", "bright"]
    for name, (sampler, arguments) in FLOW_SAMPLERS.items():
        model = Spy(LatentFlow())
        result = sampler(
            model, brightness, prompts, steps=3, options=SamplerOptions(micro_batch=2), **arguments
        )
        assert result.prompts == ("bright", "dark", "bright")
        for x, _, asked, _ in model.calls:
            assert len(asked) == len(x)
        if name in ("ntrk w", "dps"):
            assert result.rewards[1] < 0 < result.rewards[0]
        if name == "svdd":  # first the velocity, then three candidates
            assert [asked for *_, asked, _ in model.calls][:2] == [["bright"], ["bright", "bright"]]


# ---- base, and samplers without guidance ----


@pytest.mark.parametrize("schedule", [*sampling.SCHEDULES, *sampling.VP_SCHEDULES])
@pytest.mark.parametrize(
    ("sampler", "arguments"),
    [
        *[(sampling.ntrk, {"rho": rho, "operator": name}) for name in OPERATORS for rho in (0, 0.0)],
        (sampling.dps, {"strength": 0.0}),
        *[
            (sampling.freedom, {"strength": 0.0, "travel": 1, "scaling": name})
            for name in ("velocity", "none")
        ],
        (sampling.svdd, {"candidates": 1}),
        (sampling.rbf, {"starts": 1, "budget": 5}),
        (sampling.das, {"alpha": 1e30, "copies": 1}),
        (sampling.fk, {"alpha": 1.0, "copies": 1}),
        (sampling.dno, {"iterations": 0}),
        (sampling.dno, {"iterations": 2, "lr": 0.0, "answer": "last"}),
    ],
)
def test_without_guidance_every_sampler_equals_base_bit_for_bit(
    sampler: Callable[..., Result], arguments: dict[str, Any], schedule: str
) -> None:
    common = {"steps": 5, "schedule": schedule, "options": SamplerOptions(seed=11, micro_batch=2)}
    model = LatentFlow(bend=0.2)
    expected = sampling.base(model, left_half, [""] * 3, **common)
    result = sampler(model, left_half, [""] * 3, **common, **arguments)
    assert_same_bits(result.latents, expected.latents)
    assert_same_bits(result.rewards, expected.rewards)


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
def test_one_step_is_the_denoised_estimate_in_every_method(name: str) -> None:
    sampler, arguments = FLOW_SAMPLERS[name]
    if "copies" in arguments:
        arguments = {**arguments, "copies": 1}
    if "chains" in arguments:
        arguments = {**arguments, "chains": 1}
    model = LatentFlow()
    result = sampler(model, brightness, "", steps=1, options=SamplerOptions(seed=7), **arguments)
    if "start" not in arguments and name not in ("dno", "rbf", "psi"):  # which choose or change the noise
        x = ParticleNoise(7, 0, model.shape).draw()
        assert torch.equal(result.latents, x - model.velocity(x, 1.0, [""]))
    cost = 4 if "start" in arguments else 1 + arguments.get("iterations", 0)
    assert result.nfe == (4 if name in ("rbf", "psi") else cost)


def test_guidance_raises_the_reward() -> None:
    """Every method exceeds base by more than two standard errors of the mean."""
    model, prompts, options = LatentFlow(), [""] * 12, SamplerOptions(seed=0, micro_batch=12)
    base = sampling.base(model, brightness, prompts, steps=10, options=options).rewards
    error = float(base.std()) / math.sqrt(len(prompts))
    for name, (sampler, arguments) in FLOW_SAMPLERS.items():
        # The gradient of a mean over 768 values is tiny, and x0_hat of this flow is constant at t = 1.
        if name in ("base", "ntrk identity", "base from pcnl"):
            continue
        rewards = sampler(model, brightness, prompts, steps=10, options=options, **arguments).rewards
        assert float(rewards.mean()) > float(base.mean()) + 2 * error, name


def test_more_guidance_raises_the_reward_further() -> None:
    model, prompts, options = LatentFlow(), [""] * 4, SamplerOptions(seed=0, micro_batch=4)
    means = [
        float(sampling.ntrk(model, left_half, prompts, rho=rho, steps=10, options=options).rewards.mean())
        for rho in (0.0, 0.1, 0.3, 1.0)
    ]
    assert means == sorted(means)


# ---- one step of each method, recovered from the inputs of the model ----


def first_step(schedule: Schedule, steps: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return x_1, the mean, the next draw and sigma of the first step of LatentFlow(bend=0.2)."""
    model = LatentFlow(bend=0.2)
    stream = ParticleNoise(seed, 0, model.shape)
    x, noise = stream.draw(), stream.draw()
    step = plan_steps("test", model, steps, schedule)[0]
    return x, mean(x, model.velocity(x, 1.0, [""]), step), noise, step.sigma


def first_projection(x: Tensor, tiles: bool) -> Tensor:
    """Return the first projection of W for samples (B, C, H, W), by its definition, with or without tiles."""
    config = preset("auto", x.shape)

    def make_table(*arguments: Any) -> tuple[Tensor, Tensor]:
        lower, upper = confidence_table(*arguments[:2], config.alpha, arguments[2])
        return lower.float(), upper.float()

    return python_ref.project(x, config.chunk_sizes, config.tile_sizes if tiles else (), make_table)


@pytest.mark.parametrize("shape", [(4, 16, 16), (16, 32, 32), (3, 4, 16, 16), (512,)])
@pytest.mark.parametrize("name", ["2os", "2os+tiles"])
def test_parts_of_w_are_its_first_projection(name: str, shape: tuple[int, ...]) -> None:
    """Bits agree with the definition, for structured input, in every batch; noise hardly changes."""
    operator = operator_by_name("test", name, shape)
    noise = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    structured = noise + 3 * torch.sin(torch.arange(noise[0].numel()) / 50).view(shape)
    # the definition takes (B, C, H, W): a video is one image with more channels, a vector one row
    channels = (3, -1, *shape[-2:]) if len(shape) > 1 else (3, 1, 1, -1)
    for x in (noise, structured):
        if len(shape) > 1:
            expected = first_projection(x.view(channels), name == "2os+tiles").view_as(x)
            assert_same_bits(operator(x), expected)
        assert_same_bits(operator(x[[1]])[0], operator(x)[1])
    assert float((operator(noise) - noise).norm() / noise.norm()) < 0.02
    assert float((operator(structured) - structured).norm() / structured.norm()) > 0.3


def gradient_in_float64(model: LatentFlow, x: Tensor, t: float) -> Tensor:
    """Return the gradient of left_half(x0_hat) in x_t by one backward, where the samplers use two."""
    x = x.double().requires_grad_()
    rewards = left_half(model.decode(x - t * model.velocity(x, t, [""])), [""])
    return torch.autograd.grad(rewards.sum(), x)[0]


def test_gradients_agree_with_finite_differences() -> None:
    """DPS adds lambda times the gradient. Central differences of r(x0_hat(x)), float64, agree with it."""
    model, strength, steps, h = LatentFlow(bend=0.2), 1e3, 4, 1e-4
    spy, stream = Spy(model), ParticleNoise(0, 0, model.shape)
    result = sampling.dps(spy, left_half, "", strength=strength, steps=steps, schedule="linear")
    stream.draw()
    for step in plan_steps("test", model, steps, Schedule("linear"))[:-1]:
        x, t = spy.calls[step.index][0], step.t
        unguided = mean(x, model.velocity(x, t, [""]), step) + step.sigma * stream.draw()
        gradient = (spy.calls[step.index + 1][0].double() - unguided) / strength

        def reward_at(x: Tensor, t: float = t) -> float:
            return float(left_half(model.decode(x - t * model.velocity(x, t, [""])), [""]))

        for seed in range(5):
            direction = torch.randn(
                x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
            )
            difference = (reward_at(x.double() + h * direction) - reward_at(x.double() - h * direction)) / (
                2 * h
            )
            assert float((gradient * direction).sum()) == pytest.approx(difference, rel=1e-3)
        torch.testing.assert_close(gradient, gradient_in_float64(model, x, t), rtol=1e-3, atol=1e-8)
        assert result.records[step.index].gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_huge_gradients_are_finite() -> None:
    """The square of this norm exceeds the range of float32."""
    result = sampling.ntrk(LatentFlow(bend=0.2), lambda images, _: 1e30 * left_half(images, _), "", steps=2)
    assert math.isfinite(result.records[0].gradient_norm) and result.records[0].gradient_norm > 1e25
    assert float(result.latents.abs().max()) < 10


@pytest.mark.parametrize("rho", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("operator", OPERATORS)
def test_ntrk_tilts_the_noise(operator: str, rho: float) -> None:
    model = LatentFlow(bend=0.2)
    x, mu, noise, sigma = first_step(Schedule("linear"), 2)
    gradient = gradient_in_float64(model, x, 1.0).float()
    made = {
        "w": lambda g: torch.ops.noisetilt.whiten(g),
        "2os+tiles": lambda g: first_projection(g, tiles=True),
        "2os": lambda g: first_projection(g, tiles=False),
        "wgnc": lambda g: torch.ops.noisetilt.project_wgnc(g.flatten(1)).view_as(g),
        "norm": lambda g: g / g.norm() * math.sqrt(g.numel()),
        "identity": lambda g: g,
    }[operator](gradient)
    spy = Spy(model)
    result = sampling.ntrk(spy, left_half, "", rho=rho, operator=operator, steps=2, schedule="linear")
    tilted = (spy.calls[1][0] - mu) / sigma
    expected = math.sqrt(rho) * made + math.sqrt(1 - rho) * noise
    # Gradients in float32 and float64 differ in the last digits, so W may sort them in another order.
    assert float((tilted - expected).norm() / expected.norm()) < 0.02
    cosine = float((gradient * made).sum() / (gradient.norm() * made.norm()))
    assert result.records[0].cosine == pytest.approx(cosine, abs=0.01)
    assert result.records[0].gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_the_strength_of_dps_may_depend_on_time() -> None:
    constant = sampling.dps(LatentFlow(), left_half, "", strength=2.0, steps=4)
    function = sampling.dps(LatentFlow(), left_half, "", strength=lambda t: 2.0, steps=4)
    varying = sampling.dps(LatentFlow(), left_half, "", strength=lambda t: 2.0 * (t > 0.9), steps=4)
    assert torch.equal(function.latents, constant.latents)
    assert not torch.equal(varying.latents, constant.latents)


def test_svdd_keeps_the_best_candidate() -> None:
    model, count, steps = LatentFlow(bend=0.2), 5, 6
    spy = Spy(model)
    result = sampling.svdd(
        spy, left_half, "", candidates=count, steps=steps, options=SamplerOptions(seed=4, micro_batch=100)
    )
    stream = ParticleNoise(4, 0, model.shape)
    x = stream.draw()
    picked = set()
    for step in plan_steps("test", model, steps, Schedule("linear"))[:-1]:
        t = step.t - step.delta
        drawn = mean(x, model.velocity(x, step.t, [""]), step) + step.sigma * stream.draw(count)
        rewards = left_half(model.decode(drawn - t * model.velocity(drawn, t, [""])), [""] * count)
        best = int(rewards.argmax())
        picked.add(best)
        x = drawn[best : best + 1]
        assert_same_bits(spy.calls[1 + step.index][0], drawn)
        assert result.records[step.index].reward == float(rewards[best])
    assert_same_bits(result.latents, x - t * model.velocity(x, t, [""]))
    assert len(picked) > 1  # the choice varies, so the test can fail


@pytest.mark.parametrize("name", EVERY)
def test_best_of_n_chooses_the_best_of_each_prompt(name: str) -> None:
    prompts, n = ["bright", "dark"], 3
    every = [prompt for prompt in prompts for _ in range(n)]
    if name in ONE_STEP:
        (sampler, arguments), model = ONE_STEP[name], LatentGenerator()
        arguments = {"iterations": 2, **arguments}
    else:
        (sampler, arguments), model = FLOW_SAMPLERS[name], LatentFlow()
        arguments = {"steps": STEPS, **arguments}
    options = SamplerOptions(seed=1, micro_batch=4)
    alone = sampler(model, brightness, every, options=options, **arguments)
    result = sampling.best_of_n(sampler, model, brightness, prompts, n=n, options=options, **arguments)
    assert_same_bits(result.latents, alone.latents)
    assert result.nfe == alone.nfe
    assert result.chosen == (int(result.rewards[:n].argmax()), n + int(result.rewards[n:].argmax()))
    assert result.best == int(result.rewards.argmax())
    assert result.method.startswith("best of 3 ")
    assert alone.chosen == tuple(range(6))


# ---- cost ----


@pytest.mark.parametrize(
    ("name", "per_particle"),
    [
        *[(name, FORWARDS.get(name, STEPS)) for name in FLOW_SAMPLERS],
        *[(name, 3 + 1) for name in ONE_STEP],
    ],
)
@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_nfe_is_the_number_of_batch_entries(name: str, per_particle: int, micro_batch: int) -> None:
    assert run_sampler(name, [""] * 5, SamplerOptions(micro_batch=micro_batch)).nfe == 5 * per_particle
    if name not in ONE_STEP:
        spy = Spy(LatentFlow())
        sampler, arguments = FLOW_SAMPLERS[name]
        options = SamplerOptions(micro_batch=micro_batch)
        result = sampling.best_of_n(
            sampler, spy, brightness, "", n=5, steps=STEPS, options=options, **arguments
        )
        assert result.nfe == spy.entries == 5 * per_particle
        assert max(len(x) for x, *_ in spy.calls) <= micro_batch


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
def test_gradients_are_enabled_only_where_needed(name: str) -> None:
    sampler, arguments = FLOW_SAMPLERS[name]
    spy = Spy(LatentFlow())
    seen = []

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return brightness(images, prompts)

    result = sampler(spy, reward, "", steps=STEPS, **arguments)
    guided = name.startswith(("ntrk", "dps", "freedom", "das", "psi"))
    last = arguments.get("copies", 1)
    with_gradient = (FORWARDS.get(name, STEPS) - last) if guided else 4 * ("start" in arguments)
    trajectories = arguments.get("iterations", 0)  # of dno: one reward for all of their forwards
    assert [on for *_, on in spy.calls if on] == [True] * (with_gradient + STEPS * trajectories)
    assert [on for on in seen if on] == [True] * (with_gradient + trajectories)
    assert not seen[-1] and not spy.calls[-1][-1]
    assert not result.latents.requires_grad and not result.rewards.requires_grad


@pytest.mark.parametrize("name", EVERY)
def test_the_callers_gradient_mode_does_not_matter(name: str) -> None:
    expected = run_sampler(name, [""])
    for mode in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with mode:
            result = run_sampler(name, [""])
        assert_same_bits(result.latents, expected.latents)
        assert not result.latents.is_inference()


def test_gaussian_flows_of_one_and_two_dimensions_can_be_guided() -> None:
    """Guidance toward brighter images moves the mean to larger x_0, also in one dimension."""
    for flow in (GaussianFlow([0.0], [[0.5]]), GaussianFlow([0.0, 0.0], [[0.5, 0.2], [0.2, 0.5]])):
        options = SamplerOptions(seed=0, micro_batch=64)
        unguided = sampling.base(flow, brightness, [""] * 64, steps=10, options=options)
        guided = sampling.ntrk(
            flow, brightness, [""] * 64, operator="norm", rho=0.3, steps=10, options=options
        )
        assert float(guided.latents.mean()) > float(unguided.latents.mean()) + 0.3
