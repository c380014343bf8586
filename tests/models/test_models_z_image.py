"""ZImageFlow against the ZImagePipeline of diffusers, on tiny random models of its classes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline
from model_checks import assert_gradient, gradient, kept_for_backward, noise, redness
from tiny_models import SIZE, tiny_sd_turbo, tiny_z_image
from torch import Tensor

from noisetilt_kernels import sampling
from noisetilt_kernels.models import ModelError, ZImageFlow, family_of, load_pipeline
from noisetilt_kernels.models.memory import plan_memory

SHAPE = (4, 16, 32)
ODE = sampling.Schedule("constant", 0)
LONG = "the cat of the house of the dog of the red house of the cat"
"""Prompt of more than 32 tokens; the transformer pads to multiples of 32."""
PROMPTS = ["a red cat", LONG]


def flow_of(pipe: ZImagePipeline | None = None, **options: Any) -> ZImageFlow:
    return ZImageFlow(pipe or tiny_z_image(), **{**SIZE, **options})


def stock_images(pipe: ZImagePipeline, x: Tensor, prompts: list[str], steps: int, **options: Any) -> Tensor:
    size = {"height": 2 * x.shape[2], "width": 2 * x.shape[3]}
    # a copy, as the pipeline writes into the list
    return pipe(
        list(prompts), latents=x, num_inference_steps=steps, output_type="pt", **size, **options
    ).images


# ---- comparison with the pipeline ----


@pytest.mark.parametrize("shape", [SHAPE, (4, 10, 12)])  # 128 tokens, and 30 that are padded
@pytest.mark.parametrize("negative", [None, "the dog"])
@pytest.mark.parametrize("guidance", [{}, {"guidance_scale": 0.0}, {"guidance_scale": 0.7}])
def test_ode_makes_the_pipelines_images(
    guidance: dict[str, float], negative: str | None, shape: tuple[int, ...]
) -> None:
    pipe = tiny_z_image()
    against = None if negative is None else [negative] * 2
    expected = stock_images(pipe, noise(shape, 2), PROMPTS, steps=4, negative_prompt=against, **guidance)
    size = {"height": 2 * shape[1], "width": 2 * shape[2]}
    guided = guidance.get("guidance_scale") != 0
    flow = flow_of(pipe, **size, **guidance, negative_prompt=negative or "" if guided else "")
    result = sampling.base(
        flow, redness, PROMPTS, steps=4, schedule=ODE, options=sampling.SamplerOptions(micro_batch=2)
    )
    images = flow.decode(result.latents)
    assert flow.shape == shape
    assert images.std() > 0.1
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "config", [{}, {"use_dynamic_shifting": True}, {"shift": 6.0}, {"shift": 0.3224080502986908}]
)
@pytest.mark.parametrize("steps", [2, 8, 25])
def test_sigmas_are_the_pipelines(config: dict[str, Any], steps: int) -> None:
    pipe = tiny_z_image(**config)
    before = pipe.scheduler.timesteps.clone()
    sigmas = flow_of(pipe).sigmas(steps)
    assert torch.equal(pipe.scheduler.timesteps, before)
    assert sigmas[0] == 1 and sigmas[-1] == 0 and bool((sigmas.diff() < 0).all())
    stock_images(pipe, noise(SHAPE), ["a"], steps, guidance_scale=0.0)
    torch.testing.assert_close(sigmas, pipe.scheduler.sigmas, rtol=0, atol=2e-7)


def test_guidance_is_defined_as_in_the_pipeline() -> None:
    pipe, x = tiny_z_image(), noise(SHAPE, 2)
    plain = flow_of(pipe, guidance_scale=0.0)
    towards, away = (plain.velocity(x, 0.6, [prompt] * 2) for prompt in ("a cat", "the dog"))
    guided = flow_of(pipe, guidance_scale=0.5, negative_prompt="the dog").velocity(x, 0.6, ["a cat"] * 2)
    assert not torch.allclose(towards, away, atol=1e-3)
    torch.testing.assert_close(guided, 1.5 * towards - 0.5 * away, rtol=0, atol=1e-5)


def test_default_size_is_the_pipelines() -> None:
    assert ZImageFlow(tiny_z_image()).shape == (4, 512, 512)


# ---- gradients ----


def test_gradient_of_the_velocity() -> None:
    flow = flow_of(tiny_z_image().to(dtype=torch.float64))
    # diffusers applies rotary embeddings in float32, so central differences are no more exact
    x = noise(SHAPE, 2).double()
    assert_gradient(lambda x: flow.velocity(x, 0.6, PROMPTS), x, step=3e-3, tolerance=1e-3)


def test_gradient_of_the_decoder() -> None:
    pipe = tiny_z_image().to(dtype=torch.float64)
    pipe.vae.decoder.conv_out.weight.data *= 0.2  # images stay within [0, 1], where nothing is clamped
    flow, x = flow_of(pipe), noise(SHAPE).double()
    images = flow.decode(x)
    assert images.min() > 0 and images.max() < 1
    assert_gradient(flow.decode, x, step=1e-4, tolerance=1e-4)


def test_checkpointing_recomputes_and_changes_no_gradient() -> None:
    found, counts, kept = [], [], []
    for checkpointing in (False, True):
        flow = flow_of(gradient_checkpointing=checkpointing, guidance_scale=0.0)
        calls: list[None] = []
        transformer = flow.denoiser
        for block in (*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers):
            block.register_forward_pre_hook(lambda *arguments, calls=calls: calls.append(None))

        def function(x: Tensor, flow: ZImageFlow = flow) -> Tensor:
            return flow.velocity(x, 0.6, ["a cat"])

        found.append(gradient(function, noise(SHAPE)))
        counts.append(len(calls))
        x = noise(SHAPE).requires_grad_()
        kept.append(kept_for_backward((flow.denoiser,), lambda function=function, x=x: function(x)))
    # the prompt's refiner has no gradient
    assert counts == [4, 4 + 3]
    assert torch.equal(*found)
    assert kept[1] < 0.4 * kept[0]


# ---- batches and prompts ----


@pytest.mark.parametrize("guidance_scale", [0.0, 5.0])
def test_batch_entries_are_independent(guidance_scale: float) -> None:
    flow = flow_of(guidance_scale=guidance_scale)
    x, prompts = noise(SHAPE, 3), ["a red cat", LONG, "a red cat"]
    together = flow.velocity(x, 0.8, prompts)
    for index, prompt in enumerate(prompts):
        alone = flow.velocity(x[index : index + 1], 0.8, [prompt])
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-5)
    swapped = flow.velocity(x, 0.8, [LONG, LONG, "a red cat"])
    assert not torch.allclose(swapped[0], together[0], atol=1e-3)  # the prompt matters


def test_prompts_are_encoded_once_and_keep_their_length() -> None:
    pipe = tiny_z_image()
    calls: list[None] = []
    pipe.text_encoder.register_forward_pre_hook(lambda *arguments: calls.append(None))
    flow = flow_of(pipe)
    flow.encode(PROMPTS)
    assert len(calls) == 3  # the negative prompt included
    sampling.base(flow, redness, [*PROMPTS, "a red cat"], steps=2)
    assert len(calls) == 3
    lengths = [encoded["tokens"].shape[1] for encoded in flow.prompts.get(PROMPTS)]
    assert lengths[0] < 32 < lengths[1]
    pipe.text_encoder = None
    gradient(lambda x: flow.velocity(x, 0.5, [LONG]), noise(SHAPE))
    with pytest.raises(ValueError, match="ZImageFlow: pipe has no text_encoder to encode 'a house' with"):
        flow.velocity(noise(SHAPE), 0.5, ["a house"])


# ---- dtypes ----


def test_bfloat16_weights_see_exact_times() -> None:
    flow = flow_of(tiny_z_image().to(dtype=torch.bfloat16))
    seen: list[Tensor] = []
    flow.denoiser.t_embedder.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    # the timestep is 1 - t, and neighbours of 1 in bfloat16 are 0.0039 away
    times = (0.004, 0.003, 0.002, 0.001)
    velocities = [flow.velocity(noise(SHAPE), t, ["a cat"]) for t in times]
    assert torch.cat(seen[::2]).tolist() == pytest.approx([1000 * (1 - t) for t in times], abs=1e-4)
    exact = flow_of(tiny_z_image())
    for t, velocity in zip(times, velocities, strict=True):
        assert velocity.dtype == torch.float32
        assert (velocity - exact.velocity(noise(SHAPE), t, ["a cat"])).std() < 0.1 * velocity.std()


def test_bfloat16_runs_end_to_end() -> None:
    flow = flow_of(tiny_z_image().to(dtype=torch.bfloat16))
    result = sampling.ntrk(flow, redness, PROMPTS, steps=3, options=sampling.SamplerOptions(micro_batch=2))
    assert result.latents.dtype == torch.float32
    assert all(record.gradient_norm for record in result.records if record.step < 2)


# ---- runs ----


def test_ntrk_raises_the_reward_with_any_micro_batch() -> None:
    flow = flow_of()
    together, alone = sampling.SamplerOptions(micro_batch=4), sampling.SamplerOptions(micro_batch=1)
    plain = sampling.base(flow, redness, PROMPTS * 2, steps=4, options=together)
    # not "w", which sorts: rounding of a gradient could change the order
    options = {"rho": 1.0, "operator": "wgnc", "steps": 4}
    tilted = sampling.ntrk(flow, redness, PROMPTS * 2, options=together, **options)
    assert bool((tilted.rewards > plain.rewards).all())
    assert not any(record.fallback for record in tilted.records)
    one_by_one = sampling.ntrk(flow, redness, PROMPTS * 2, options=alone, **options)
    torch.testing.assert_close(tilted.latents, one_by_one.latents, rtol=0, atol=1e-3)


def test_saving_and_loading(tmp_path: Path) -> None:
    tiny_z_image().save_pretrained(tmp_path)
    pipe = load_pipeline(tmp_path, dtype=torch.float32, device="cpu")
    adapter = family_of(pipe).adapter("it", one_step=False, options=["negative_prompt"])
    assert adapter is ZImageFlow
    x = noise(SHAPE, 2)
    torch.testing.assert_close(flow_of(pipe).velocity(x, 0.5, PROMPTS), flow_of().velocity(x, 0.5, PROMPTS))
    with pytest.raises(ModelError, match="takes more than one step"):
        family_of(pipe).adapter("it", one_step=True)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_planned_memory_matches_the_real_graph(tmp_path: Path, checkpointing: bool) -> None:
    tiny_z_image().save_pretrained(tmp_path)
    options = {**SIZE, "gradient_checkpointing": checkpointing, "guidance_scale": 0.0}
    plan = plan_memory(tmp_path, dtype=torch.float32, micro_batch=2, **options)
    assert plan.shape == SHAPE and plan.pixels == (3, *SIZE.values())
    flow = flow_of(**options)
    assert plan.denoiser == sum(parameter.nbytes for parameter in flow.denoiser.parameters())
    flow.prompts.put("", {"tokens": torch.randn(flow.placeholder_prompt()["tokens"].shape)})  # the longest
    networks = (flow.denoiser, flow.pipe.vae)
    x = noise(SHAPE, 2).requires_grad_()
    kept = [kept_for_backward(networks, lambda: flow.velocity(x, 0.5, ["", ""]))]
    kept += [kept_for_backward(networks, lambda: flow.decode(x))]
    # the backward's own memory is added
    assert sum(kept) < plan.activations < (8 if checkpointing else 1.5) * sum(kept)


# ---- errors ----


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"height": 30},
            ValueError,
            "ZImageFlow: height must be a multiple of 4, got 30; 28 and 32 are nearest",
        ),
        (
            {"guidance_scale": -1},
            ValueError,
            "ZImageFlow: guidance_scale must be finite and at least 0, got -1",
        ),
        ({"negative_prompt": None}, TypeError, "ZImageFlow: negative_prompt must be a string, got None"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        flow_of(**options)


def test_sides_end_at_the_positions_that_the_model_knows() -> None:
    pipe = tiny_z_image()
    pipe.transformer.axes_lens = [600, 8, 16]  # of the prompt, rows and columns
    assert flow_of(pipe, height=32, width=64).shape == SHAPE
    for side, size in (("height", {"height": 36, "width": 64}), ("width", {"height": 32, "width": 68})):
        with pytest.raises(
            ValueError, match=f"ZImageFlow: {side} must be at most {size[side] - 4}, the last"
        ):
            flow_of(pipe, **size)


def test_other_pipelines_and_latents_are_errors() -> None:
    with pytest.raises(
        TypeError, match="ZImageFlow: pipe must be a ZImagePipeline of diffusers, got StableDiffusion"
    ):
        flow_of(tiny_sd_turbo())
    message = (
        r"ZImageFlow.velocity: x must be \(2, 4, 16, 32\), one latent for each prompt, got \(1, 4, 16, 32\)"
    )
    with pytest.raises(ValueError, match=message):
        flow_of().velocity(noise(SHAPE), 0.5, PROMPTS)
