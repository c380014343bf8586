"""GuidedPipeline: stock pipelines of diffusers with the steps of a sampler."""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import model_checks
import PIL.Image
import pytest
import tiny_models
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline, FluxPipeline
from model_checks import redness
from tiny_flux import LENGTH, SIZE, tiny_flux, tiny_taesd
from tiny_ltx import tiny_ltx
from tiny_wan import SIZE as VIDEO
from tiny_wan import tiny_wan, tiny_wan_a14b
from torch import Tensor

from noisetilt_kernels import pack_latents, sampling, unpack_latents
from noisetilt_kernels.models import (
    FlowSDEScheduler,
    FluxFlow,
    GuidedPipeline,
    ModelError,
    family_of,
    load_pipeline,
)

PROMPTS = ["a red cat", "the dog of the house"]
FLUX = {"height": SIZE, "width": SIZE, "max_sequence_length": LENGTH, "output_type": "latent"}


@pytest.fixture(scope="module")
def digits() -> FluxPipeline:
    pipe = load_pipeline("digits", dtype=torch.float32, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux(**options: Any) -> FluxPipeline:
    pipe = tiny_flux(**options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.flatten(1).mean(dim=1)


def same_noise(
    x: Tensor, seed: int, unpack: Callable[[Tensor], Tensor] = lambda x: x, **options: Any
) -> sampling.SamplerOptions:
    """Options with the first latents x (B, ...) of a loop, and the noise that its generator gives."""
    generator, drawn = seeded(seed), [unpack(x)]

    def noise(particle: int, draw: int) -> Tensor:
        while draw >= len(drawn):
            drawn.append(unpack(torch.randn(x.shape, generator=generator)))
        return drawn[draw][particle]

    return sampling.SamplerOptions(noise=noise, micro_batch=len(x), **options)


def forwards(network: torch.nn.Module) -> list[bool]:
    """Return a list that gets an item at each forward: True if the output has a graph."""
    found: list[bool] = []

    def count(module: Any, args: Any, output: Any) -> None:
        first = output[0][0] if isinstance(output[0], list) else output[0]
        found.append(first.requires_grad)

    network.register_forward_hook(count)
    return found


def assert_same_records(found: Sequence[Any], expected: Sequence[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.particle, one.step, one.t) == (other.particle, other.step, other.t)
        for name in ("reward", "gradient_norm", "cosine", "noise_peak"):
            theirs = getattr(other, name)
            assert getattr(one, name) == (None if theirs is None else pytest.approx(theirs, rel=1e-3))


# ---- the same as the samplers ----


@pytest.mark.parametrize(
    ("sampler", "arguments"),
    [
        # "w" would amplify the rounding of another version of torch near ties
        ("ntrk", {"rho": 0.1, "operator": "wgnc"}),
        ("ntrk", {"rho": 0.2, "operator": "norm", "schedule": sampling.Schedule("constant", 0.5)}),
        ("dps", {"strength": 0.5}),
        ("freedom", {"strength": 0.3, "travel": 1}),
        ("base", {}),
    ],
)
def test_digits_equal_the_sampler(digits: FluxPipeline, sampler: str, arguments: dict[str, Any]) -> None:
    flow = FluxFlow(digits)
    side, steps = digits.vae.config.sample_size, 5
    x = pack_latents(model_checks.noise(flow.shape, 2))
    prompts = ["a handwritten seven", "a handwritten one"]
    calls = forwards(digits.transformer)
    guided = GuidedPipeline(digits, brightness, sampler=sampler, **arguments)
    packed = guided(
        prompts,
        height=side,
        width=side,
        max_sequence_length=flow.prompt_length,
        latents=x,
        num_inference_steps=steps,
        generator=seeded(3),
        output_type="latent",
    ).images
    assert len(calls) == steps
    expected = sampling.SAMPLERS[sampler].function(
        flow,
        brightness,
        prompts,
        steps=steps,
        **arguments,
        options=same_noise(x, 3, lambda x: unpack_latents(x, *flow.shape[1:])),
    )
    assert len(calls) == 2 * steps
    assert guided.nfe == expected.nfe == 2 * steps
    torch.testing.assert_close(unpack_latents(packed, *flow.shape[1:]), expected.latents, rtol=0, atol=1e-4)
    assert_same_records(guided.records, expected.records)


_SMALL = tiny_models.SIZE
_CASES: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, Any]]] = {
    # pipeline, arguments of its call, arguments of its flow
    "flux": (
        flux,
        {"true_cfg_scale": 3.0, "negative_prompt": ["the house"] * 2, **FLUX},
        {"true_cfg_scale": 3.0, "negative_prompt": "the house", "height": SIZE, "width": SIZE},
    ),
    "flux2": (tiny_models.tiny_flux2, {"guidance_scale": 2.5, **_SMALL}, {"guidance_scale": 2.5, **_SMALL}),
    "klein": (
        tiny_models.tiny_flux2_klein,
        {"guidance_scale": 4.0, **_SMALL},
        {"guidance_scale": 4.0, **_SMALL},
    ),
    "qwen": (
        tiny_models.tiny_qwen_image,
        {"true_cfg_scale": 2.5, "negative_prompt": ["the house"] * 2, **_SMALL},
        {"true_cfg_scale": 2.5, "negative_prompt": "the house", **_SMALL},
    ),
    "sd3": (
        tiny_models.tiny_sd3,
        {
            "guidance_scale": 2.5,
            "negative_prompt": ["the house"] * 2,
            "max_sequence_length": 8,
            **_SMALL,
        },
        {"guidance_scale": 2.5, "negative_prompt": "the house", "max_sequence_length": 8, **_SMALL},
    ),
    "wan": (
        lambda: tiny_wan(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)),
        {"guidance_scale": 4.0, "negative_prompt": ["the house"] * 2, **VIDEO},
        {"guidance_scale": 4.0, "negative_prompt": "the house", **VIDEO},
    ),
    "wan2.2": (
        lambda: tiny_wan_a14b(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)),
        {"guidance_scale": 4.0, "guidance_scale_2": 3.0, "negative_prompt": ["a"] * 2, **VIDEO},
        {"guidance_scale": 4.0, "guidance_scale_2": 3.0, "negative_prompt": "a", **VIDEO},
    ),
    "z-image": (
        tiny_models.tiny_z_image,
        {"guidance_scale": 2.0, "negative_prompt": ["the dog"] * 2, **_SMALL},
        {"guidance_scale": 2.0, "negative_prompt": "the dog", **_SMALL},
    ),
}


@pytest.mark.parametrize("name", _CASES)
def test_every_family_equals_ntrk_with_classifier_free_guidance(name: str) -> None:
    make, call, settings = _CASES[name]
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    flow: Any = family_of(pipe).flow(pipe, **settings)  # type: ignore[misc]
    x = model_checks.noise(flow.shape, 2)
    tokens = flow.facts.packing > 1
    first = pack_latents(x) if tokens else x
    given = first
    if name in ("flux2", "klein"):  # these take latents before packing
        given = first.transpose(1, 2).unflatten(2, tuple(side // 2 for side in x.shape[2:]))
    steps, arguments = 4, {"rho": 0.2, "operator": "norm"}
    call = {"latents": given, "num_inference_steps": steps, **call, "output_type": "pt"}
    counts = [forwards(one) for one in flow.denoisers]
    pipe(prompt=list(PROMPTS), **copy.deepcopy(call))  # copies, as Z-Image's pipeline writes into lists
    plain = [len(count) for count in counts]
    guided = GuidedPipeline(pipe, redness, **arguments)
    output = guided(prompt=list(PROMPTS), generator=seeded(2), **call)
    assert [len(count) for count in counts] == [2 * count for count in plain] and guided.nfe == 2 * steps
    expected = sampling.ntrk(
        flow,
        redness,
        PROMPTS,
        steps=steps,
        **arguments,
        options=same_noise(first, 2, lambda x: unpack_latents(x, *flow.shape[1:]) if tokens else x),
    )
    assert_same_records(guided.records, expected.records)
    with torch.no_grad():
        images = flow.decode(expected.latents)
    found = output.frames.transpose(1, 2) if flow.facts.videos else output.images
    assert images.std() > 0.02
    torch.testing.assert_close(found, images, rtol=0, atol=3e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_strength_it_has_the_bits_of_the_scheduler(dtype: torch.dtype) -> None:
    pipe = flux().to(dtype=dtype)
    call: dict[str, Any] = {"prompt": PROMPTS, "num_inference_steps": 4, **FLUX}
    guided = GuidedPipeline(pipe, brightness, rho=0.0, schedule="quadratic")
    found = guided(generator=seeded(1), **call).images
    moved = GuidedPipeline(pipe, brightness, rho=0.1, schedule="quadratic")(
        generator=seeded(1), **call
    ).images
    base = GuidedPipeline(pipe, brightness, sampler="base", schedule="quadratic")
    assert torch.equal(base(generator=seeded(1), **call).images, found)
    pipe.scheduler = FlowSDEScheduler.from_config(pipe.scheduler.config, schedule="quadratic")
    pipe.scheduler.generator = generator = seeded(1)
    expected = pipe(generator=generator, **call).images
    assert found.dtype == dtype and torch.equal(found, expected)
    assert not torch.allclose(moved, expected, atol=0.05)


def test_every_image_has_its_generator() -> None:
    guided = GuidedPipeline(flux(), brightness, rho=0.1, operator="norm")
    both = guided(PROMPTS, num_inference_steps=3, generator=[seeded(0), seeded(1)], **FLUX).images
    alone = guided(PROMPTS[1], num_inference_steps=3, generator=[seeded(1)], **FLUX).images
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-4)


def test_a_reward_decoder_judges_the_estimates() -> None:
    pipe, x = flux(), model_checks.noise((4, 16, 16))
    guided = GuidedPipeline(pipe, brightness, rho=0.1, operator="norm", reward_decoder=tiny_taesd())
    call: dict[str, Any] = {"latents": pack_latents(x), "num_inference_steps": 3, **FLUX}
    guided("a red cat", generator=seeded(), **call)
    flow = FluxFlow(pipe, height=SIZE, width=SIZE, reward_decoder=tiny_taesd())
    expected = sampling.ntrk(
        flow,
        brightness,
        "a red cat",
        rho=0.1,
        operator="norm",
        steps=3,
        options=same_noise(pack_latents(x), 0, lambda x: unpack_latents(x, 16, 16)),
    )
    assert_same_records(guided.records, expected.records)


# ---- graphs ----


def test_only_guided_steps_have_graphs() -> None:
    pipe = flux()
    graphs = forwards(pipe.transformer)
    guided = GuidedPipeline(pipe, brightness, rho=0.1, guide=sampling.GuidedSteps(every=2))
    guided("a cat", num_inference_steps=5, generator=seeded(), **FLUX)
    assert graphs == [True, False, True, False, False]  # the last step is never guided
    rewards = [record.reward for record in guided.records]
    assert [reward is not None for reward in rewards] == [True, False, True, False, True]


def test_callbacks_and_results_have_no_graph() -> None:
    pipe, seen = flux(), []

    def look(pipe: Any, step: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((tensors["latents"].requires_grad, torch.is_grad_enabled()))
        return tensors

    images = GuidedPipeline(pipe, brightness, rho=0.1)(
        "a cat", num_inference_steps=3, callback_on_step_end=look, **{**FLUX, "output_type": "pt"}
    ).images
    assert seen == [(False, False)] * 3 and not images.requires_grad
    assert torch.is_grad_enabled()


# ---- the pipeline's own features ----


def test_a_callback_changes_latents_and_interrupts() -> None:
    pipe, after = flux(), []

    def change(pipe: Any, step: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        after.append(tensors["latents"])
        if step == 1:
            pipe._interrupt = True
        return {"latents": torch.full_like(tensors["latents"], 0.25)}

    guided = GuidedPipeline(pipe, brightness, rho=0.0, schedule=sampling.Schedule("linear", 0))
    inputs: list[Tensor] = []
    pipe.transformer.register_forward_hook(
        lambda module, args, kwargs, output: inputs.append(kwargs["hidden_states"].detach()), with_kwargs=True
    )
    found = guided("a cat", num_inference_steps=4, callback_on_step_end=change, **FLUX).images
    assert len(inputs) == 2 and len(guided.records) == 2 and guided.nfe == 2
    assert bool((inputs[1] == 0.25).all()) and bool((found == 0.25).all())
    assert (after[1] - 0.25).abs().mean() < (after[0] - 0.25).abs().mean()  # a step from the new latents

    again = guided("a cat", num_inference_steps=4, generator=seeded(), **FLUX).images
    assert len(guided.records) == 4
    assert torch.equal(again, guided("a cat", num_inference_steps=4, generator=seeded(), **FLUX).images)


def test_prompts_of_the_reward() -> None:
    seen: list[list[str]] = []

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        seen.append(list(prompts))
        return brightness(images, prompts)

    pipe = flux()
    guided = GuidedPipeline(pipe, reward, rho=0.1)
    call: dict[str, Any] = {"num_inference_steps": 2, **FLUX}
    found = guided(PROMPTS, num_images_per_prompt=2, **call).images
    assert len(found) == 4
    assert seen == [[PROMPTS[0]] * 2 + [PROMPTS[1]] * 2] * 2
    guided("a cat", reward_prompts="a long text", **call)
    assert seen[-1] == ["a long text"]
    tokens, pooled, _ = pipe.encode_prompt("a cat", None, max_sequence_length=LENGTH)
    embedded: dict[str, Any] = {"prompt_embeds": tokens, "pooled_prompt_embeds": pooled, **call}
    guided(reward_prompts="a cat", **embedded)
    assert seen[-1] == ["a cat"]
    with pytest.raises(ValueError, match="a call without prompt must have reward_prompts, got neither"):
        guided(**embedded)
    with pytest.raises(ValueError, match="1 images must have one prompt for all of them or for each, got 2"):
        guided("a cat", reward_prompts=PROMPTS, **call)


def test_options_are_those_of_the_sampler() -> None:
    records: list[sampling.StepRecord] = []
    options = sampling.SamplerOptions(on_record=records.append, non_finite="plain_noise")
    pipe = flux()

    def broken(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return brightness(images, prompts) * torch.nan

    guided = GuidedPipeline(pipe, broken, rho=0.5, options=options)
    call: dict[str, Any] = {"num_inference_steps": 3, **FLUX}
    found = guided("a cat", generator=seeded(), **call).images
    assert records == list(guided.records) and records[0].fallback == "non-finite reward"
    plain = GuidedPipeline(pipe, brightness, sampler="base")("a cat", generator=seeded(), **call).images
    assert torch.equal(found, plain)
    with pytest.raises(sampling.NonFiniteError):
        GuidedPipeline(pipe, broken, rho=0.5)("a cat", **call)


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_the_pipeline_is_as_before(fails: bool) -> None:
    pipe = flux()
    before = pipe("a cat", num_inference_steps=3, generator=seeded(), **FLUX).images
    scheduler = pipe.scheduler

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        if fails:
            raise OSError("no connection")
        return brightness(images, prompts)

    guided = GuidedPipeline(pipe, reward, rho=0.1)
    try:
        guided("a cat", num_inference_steps=3, **FLUX)
    except OSError:
        assert fails
    assert pipe.scheduler is scheduler and "step" not in vars(scheduler)
    assert not pipe.transformer._forward_pre_hooks and torch.is_grad_enabled()
    assert torch.equal(pipe("a cat", num_inference_steps=3, generator=seeded(), **FLUX).images, before)


# ---- errors ----


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"sampler": "best"}, ValueError, "GuidedPipeline: unknown sampler 'best'"),
        ({"sampler": "svdd"}, ValueError, "must make one forward in each step, like 'ntrk' and 'dps', got"),
        ({"sampler": "wgnc"}, ValueError, "must make one forward in each step"),
        ({"sampler": "dps"}, TypeError, "GuidedPipeline: dps needs strength"),
        ({"rho": 1.5}, ValueError, "ntrk: rho must be"),
        (
            {"steps": 3},
            TypeError,
            "ntrk takes no steps here; its arguments are rho, operator, schedule, guide$",
        ),
        ({"schedule": "vp"}, ValueError, "schedule 'vp' has times of its own"),
        ({"reward": 3}, TypeError, "reward must be callable"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        GuidedPipeline(flux(), **{"reward": brightness, **arguments})


def test_other_pipelines_are_errors() -> None:
    with pytest.raises(TypeError, match=r"pipe must be one of FluxPipeline, .* got LTXPipeline"):
        GuidedPipeline(tiny_ltx(), brightness)
    parts = flux().components
    names = inspect.signature(FluxImg2ImgPipeline).parameters
    other = FluxImg2ImgPipeline(**{name: part for name, part in parts.items() if name in names})
    with pytest.raises(TypeError, match="got FluxImg2ImgPipeline"):
        GuidedPipeline(other, brightness)
    with pytest.raises(ModelError, match="has no reward_decoder"):
        GuidedPipeline(tiny_models.tiny_qwen_image(), brightness, reward_decoder=tiny_taesd())


def test_loops_that_do_not_fit_are_errors() -> None:
    pipe = flux()
    guided = GuidedPipeline(pipe, brightness, rho=0.1)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"^ntrk: .* leave torch.inference_mode"):
        guided("a cat", num_inference_steps=2, **FLUX)

    def resume(pipe: Any, step: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe.scheduler.timesteps = pipe.scheduler.timesteps.flip(0)
        return tensors

    with pytest.raises(RuntimeError, match="make all steps of the scheduler in order"):
        guided("a cat", num_inference_steps=2, callback_on_step_end=resume, **FLUX)

    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "hidden_states": 2 * kwargs["hidden_states"]}),
        with_kwargs=True,
    )
    with pytest.raises(ValueError, match="must give the denoiser the latents alone"):
        guided("a cat", num_inference_steps=2, **FLUX)


@pytest.mark.parametrize(
    "arguments", [{"sampler": "base"}, {"rho": 0.1, "guide": sampling.GuidedSteps(from_t=0.99)}]
)
def test_editing_is_refused_at_steps_without_guidance_too(arguments: dict[str, Any]) -> None:
    """FLUX.2 appends the tokens of its images to the latents."""
    pipe = tiny_models.tiny_flux2()
    pipe.set_progress_bar_config(disable=True)
    guided = GuidedPipeline(pipe, brightness, **arguments)
    image = PIL.Image.new("RGB", (64, 64))
    calls = forwards(pipe.transformer)
    with pytest.raises(ValueError, match="must give the denoiser the latents alone"):
        guided(image, "a cat", num_inference_steps=4, generator=seeded(), **_SMALL)
    assert len(calls) == 1


def test_other_keywords_of_the_denoiser_are_errors() -> None:
    pipe = flux()
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {"sample": kwargs["hidden_states"]}), with_kwargs=True
    )
    message = "ntrk: the loop must give the denoiser the latents as .* hidden_states, got sample; this loop"
    with pytest.raises(RuntimeError, match=message):
        GuidedPipeline(pipe, brightness, rho=0.1)("a cat", num_inference_steps=2, **FLUX)


def test_a_step_of_the_scheduler_that_is_replaced_is_left_alone() -> None:
    pipe = flux()
    guided = GuidedPipeline(pipe, brightness, rho=0.1)
    call: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 3, **FLUX}
    messages: list[str] = []

    def nest(pipe: Any, step: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        with pytest.raises(RuntimeError) as raised:
            GuidedPipeline(pipe, brightness, rho=0.1)(**call)
        messages.append(str(raised.value))
        return tensors

    found = guided(generator=seeded(), callback_on_step_end=nest, **call).images
    assert len(messages) == 3 and messages[0].startswith(
        "ntrk: the pipeline's scheduler must have the step of"
    )
    assert torch.equal(found, guided(generator=seeded(), **call).images)

    pipe.scheduler.step = mine = pipe.scheduler.step
    with pytest.raises(RuntimeError, match=r"end that call, or `del scheduler.step`"):
        guided(**call)
    assert pipe.scheduler.step is mine and not pipe.transformer._forward_pre_hooks
