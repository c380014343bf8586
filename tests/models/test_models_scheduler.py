"""FlowSDEScheduler: the samplers' step in diffusers pipelines."""

import inspect
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from gaussian_flows import GaussianFlow, LatentFlow, after_steps, brightness
from tiny_flux import LENGTH, SIZE, tiny_flux
from torch import Tensor

from noisetilt_kernels import pack_latents, sampling
from noisetilt_kernels.models import FlowSDEScheduler, FluxFlow
from noisetilt_kernels.models.times import size_shift
from noisetilt_kernels.sampling.noise import ParticleNoise
from noisetilt_kernels.sampling.steps import plan_steps

UNIFORM = {"num_inference_steps": 25, "sigmas": [1 - step / 25 for step in range(25)]}


def flux(**scheduler: object) -> FluxPipeline:
    """Return a tiny FLUX with the scheduler, set as in the documentation."""
    pipe = tiny_flux()
    pipe.scheduler = FlowSDEScheduler.from_config(pipe.scheduler.config, **scheduler)
    return pipe


def images(pipe: FluxPipeline, prompt: str | list[str] = "a red cat", **options: object) -> Tensor:
    defaults = {"height": SIZE, "width": SIZE, "num_inference_steps": 4, "max_sequence_length": LENGTH}
    return pipe(prompt, **{**defaults, "output_type": "pt", **options}).images


# ---- the same step as the samplers' ----


@pytest.mark.parametrize("schedule", sampling.SCHEDULES)
def test_steps_have_the_bits_of_base(schedule: str) -> None:
    scheduler = FlowSDEScheduler(schedule=schedule, shift=3.0)
    scheduler.set_timesteps(6)
    flow = LatentFlow(bend=0.3, sigmas=lambda n: scheduler.sigmas)
    expected = sampling.base(
        flow, brightness, "light", steps=6, schedule=schedule, options=sampling.SamplerOptions(seed=3)
    )
    stream = ParticleNoise(3, 0, flow.shape)
    x = stream.draw()
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
        velocity = flow.velocity(x, sigma, ["light"])
        last = t == scheduler.timesteps[-1]
        # noise has no effect in the last step
        x = scheduler.step(
            velocity, t, x, noise=torch.full_like(x, 9.0) if last else stream.draw()
        ).prev_sample
    assert torch.equal(x, expected.latents)


def test_flux_with_this_scheduler_equals_base(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = flux(schedule="flow-grpo", scale=0.5)
    stream = ParticleNoise(5, 0, (4, 16, 16))
    x = pack_latents(stream.draw())
    draws: list[tuple[int, ...]] = []

    def draw(shape: tuple[int, ...], **options: object) -> Tensor:
        draws.append(tuple(shape))
        return pack_latents(stream.draw())

    monkeypatch.setattr("noisetilt_kernels.models.scheduler.randn_tensor", draw)
    found = images(pipe, latents=x)
    assert draws == [(1, 64, 16)] * 3
    flow = FluxFlow(pipe, height=SIZE, width=SIZE)
    schedule = sampling.Schedule("flow-grpo", 0.5)
    result = sampling.base(
        flow, brightness, "a red cat", steps=4, schedule=schedule, options=sampling.SamplerOptions(seed=5)
    )
    torch.testing.assert_close(flow.decode(result.latents), found, rtol=0, atol=1e-5)


def test_scale_zero_equals_eulers_scheduler() -> None:
    pipe = tiny_flux()
    generator = torch.Generator()
    expected = images(pipe, generator=generator.manual_seed(0))
    found = images(flux(schedule="constant", scale=0), generator=generator.manual_seed(0))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# ---- marginals ----


def spread(scheduler: FlowMatchEulerDiscreteScheduler, flow: GaussianFlow, count: int = 40_000) -> float:
    """Standard deviation of the scheduler's results from noise."""
    torch.manual_seed(0)
    scheduler.set_timesteps(**UNIFORM)
    x = torch.randn(count, 1)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
        x = scheduler.step(flow.velocity(x, sigma, []), t, x, return_dict=False)[0]
    assert float(x.mean()) == pytest.approx(float(flow.data.mean), abs=0.02)
    return float(x.std())


@pytest.mark.parametrize("schedule", sampling.SCHEDULES)
def test_marginals_are_kept(schedule: str) -> None:
    flow = GaussianFlow([0.3], [[0.25]])
    found = spread(FlowSDEScheduler(schedule=schedule), flow)
    exact = after_steps(flow, plan_steps("test", flow, 25, sampling.Schedule(schedule))).covariance.sqrt()
    assert found == pytest.approx(float(exact), rel=0.015)  # four standard errors
    assert found == pytest.approx(0.5, rel=0.06)


def test_stochastic_sampling_of_diffusers_does_not_keep_marginals() -> None:
    flow = GaussianFlow([0.3], [[0.25]])
    assert spread(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), flow) < 0.4
    assert spread(FlowSDEScheduler(stochastic_sampling=True), flow) > 0.47


# ---- randomness ----


def test_images_are_reproducible() -> None:
    pipe = flux(schedule="linear")

    def image(seed: int) -> Tensor:
        pipe.scheduler.generator = generator = torch.Generator().manual_seed(seed)
        return images(pipe, generator=generator)

    first, other = image(0), image(1)
    torch.manual_seed(7)
    assert torch.equal(image(0), first)
    assert not torch.allclose(first, other, atol=1e-2)


def test_each_call_draws_new_noise() -> None:
    pipe = flux(schedule="linear")
    pipe.scheduler.generator = torch.Generator().manual_seed(0)
    one, two = (images(pipe, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert not torch.allclose(one, two, atol=1e-2)


def test_the_global_generator_is_the_default() -> None:
    pipe = flux(schedule="linear")
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        found.append(images(pipe))
    assert torch.equal(*found)


def test_a_generator_for_each_entry() -> None:
    pipe = flux(schedule="linear")

    def batch(seeds: list[int]) -> Tensor:
        pipe.scheduler.generator = generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return images(pipe, ["a red cat"] * len(seeds), generator=generators)

    torch.testing.assert_close(batch([0, 1, 2])[1:2], batch([1]), rtol=0, atol=1e-5)


def test_generator_of_the_call_comes_first() -> None:
    scheduler = FlowSDEScheduler()
    scheduler.generator = torch.Generator().manual_seed(0)
    found = []
    for generator in (torch.Generator().manual_seed(1), torch.Generator().manual_seed(1), None):
        scheduler.set_timesteps(4)
        x = torch.zeros(1, 8)
        found.append(scheduler.step(x, scheduler.timesteps[0], x, generator=generator).prev_sample)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


# ---- as a scheduler ----


def test_configuration_extends_eulers_scheduler(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters
    ours = inspect.signature(FlowSDEScheduler.__init__).parameters
    assert list(ours) == [*theirs, "schedule", "scale"]
    assert all(ours[name].default == parameter.default for name, parameter in theirs.items())

    config = {"shift": 2.0, "use_dynamic_shifting": True, "max_shift": 1.3, "shift_terminal": 0.1}
    changed = FlowMatchEulerDiscreteScheduler(**config)
    with caplog.at_level(logging.WARNING):
        scheduler = FlowSDEScheduler.from_config(changed.config, schedule="quadratic")
        scheduler.save_pretrained(tmp_path)
        again = FlowSDEScheduler.from_pretrained(tmp_path)
        back = FlowMatchEulerDiscreteScheduler.from_config(again.config)
    assert {**config, "schedule": "quadratic", "scale": None}.items() <= dict(again.config).items()
    for each in (changed, scheduler, again, back):
        each.set_timesteps(5, mu=0.8)
    assert torch.equal(changed.sigmas, again.sigmas) and torch.equal(changed.sigmas, back.sigmas)
    unexpected = [record for record in caplog.records if "schedule" not in record.message]
    assert not unexpected  # going back, diffusers warns that its scheduler has no `schedule`


def test_starts_in_the_middle() -> None:
    scheduler = FlowSDEScheduler()
    scheduler.set_timesteps(4)
    x, velocity, noise = torch.randn(3, 2, 8)
    scheduler.set_begin_index(2)  # as image-to-image does
    first = scheduler.step(velocity, scheduler.timesteps[2], x, noise=noise).prev_sample
    scheduler.set_begin_index(None)
    scheduler.set_timesteps(4)
    assert torch.equal(scheduler.step(velocity, scheduler.timesteps[2], x, noise=noise).prev_sample, first)
    assert scheduler.step_index == 3


def test_result_has_the_models_dtype() -> None:
    scheduler = FlowSDEScheduler()
    x, velocity, noise = torch.randn(3, 2, 8)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        scheduler.set_timesteps(4)
        found.append(scheduler.step(velocity.to(dtype), scheduler.timesteps[0], x, noise=noise)[0])
        assert found[-1].dtype == dtype
    torch.testing.assert_close(found[1].float(), found[0], rtol=0.02, atol=0.03)
    pipe = flux(schedule="linear").to(dtype=torch.bfloat16)
    assert bool(images(pipe).isfinite().all())


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps(steps: int) -> None:
    pipe = flux(schedule="linear")
    assert bool(images(pipe, num_inference_steps=steps).isfinite().all())


def test_times_start_at_one_despite_rounding() -> None:
    scheduler = FlowSDEScheduler(shift=0.3224080502986908)
    scheduler.set_timesteps(sigmas=[1.0, 0.5])
    assert scheduler.sigmas[0] != 1  # otherwise this shift would test nothing


# ---- errors ----


def test_a_scheduler_without_shifts_has_those_of_the_pipelines() -> None:
    defaults = inspect.signature(calculate_shift).parameters
    small, large = (defaults[f"{name}_seq_len"].default for name in ("base", "max"))
    scheduler = SimpleNamespace(config={})
    assert size_shift(scheduler, small) == pytest.approx(defaults["base_shift"].default)
    assert size_shift(scheduler, large) == pytest.approx(defaults["max_shift"].default)


def test_errors() -> None:
    for name in ("cubic", "vp"):  # the times of VP are not those of the scheduler
        message = f"FlowSDEScheduler: unknown schedule '{name}'.*; valid: 'constant', .*, 'flow-grpo'$"
        with pytest.raises(ValueError, match=message):
            FlowSDEScheduler(schedule=name)
    with pytest.raises(ValueError, match="Schedule: scale must be finite and at least 0, got -1"):
        FlowSDEScheduler.from_config(FlowMatchEulerDiscreteScheduler().config, scale=-1)
    scheduler = FlowSDEScheduler()
    x = torch.zeros(2, 8)
    with pytest.raises(
        ValueError, match=r"FlowSDEScheduler.step: no steps are planned; call set_timesteps\(n\) first"
    ):
        scheduler.step(x, 1.0, x)
    scheduler.set_timesteps(4)
    message = r"FlowSDEScheduler.step: noise must have sample's shape \(2, 8\), got \(8,\)"
    with pytest.raises(ValueError, match=message):
        scheduler.step(x, scheduler.timesteps[0], x, noise=torch.zeros(8))
    message = r"FlowSDEScheduler.set_timesteps: sigmas must decrease from 1, got \[0.5, 0.25\]"
    with pytest.raises(ValueError, match=message):
        scheduler.set_timesteps(sigmas=[0.5, 0.25])
    with pytest.raises(ValueError, match="sigmas must decrease from 1"):
        FlowSDEScheduler(invert_sigmas=True).set_timesteps(4)
