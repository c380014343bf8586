"""SD3Flow against the StableDiffusion3Pipeline of diffusers, on tiny random models of its classes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from model_checks import (
    assert_gradient,
    assert_independent,
    assert_planned,
    assert_recomputed,
    noise,
    ode_latents,
)
from tiny_models import SIZE, tiny_sd3
from torch import Tensor

from noisetilt_kernels.models import ModelError, SD3Flow, family_of, load_pipeline

SHAPE = (4, 16, 32)
PROMPTS = ["a red cat", "the dog of the house"]
LENGTH = 8
"""Number of T5 tokens."""


def flow_of(pipe: StableDiffusion3Pipeline | None = None, **options: Any) -> SD3Flow:
    return SD3Flow(pipe or tiny_sd3(), **{**SIZE, "max_sequence_length": LENGTH, **options})


@pytest.mark.parametrize(("scale", "negative"), [(1.0, ""), (7.0, ""), (2.5, "the house")])
@pytest.mark.parametrize("scheduler", [{}, {"use_dynamic_shifting": True, "base_shift": 0.7}])
def test_ode_is_the_pipelines_path(scheduler: dict[str, Any], scale: float, negative: str) -> None:
    pipe = tiny_sd3(**scheduler)
    given = {"num_inference_steps": 4, "guidance_scale": scale, "max_sequence_length": LENGTH, **SIZE}
    given |= {"negative_prompt": [negative] * 2, "latents": noise(SHAPE, 2)}
    latents = pipe(PROMPTS, output_type="latent", **given).images
    images = pipe(PROMPTS, output_type="pt", **given).images
    flow = flow_of(pipe, guidance_scale=scale, negative_prompt=negative)
    found = ode_latents(flow, PROMPTS)
    assert flow.shape == SHAPE
    torch.testing.assert_close(found, latents, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(flow.decode(found), images, rtol=0, atol=1e-5)


def test_without_t5(tmp_path: Path) -> None:
    pipe = tiny_sd3()
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    pipe.save_pretrained(tmp_path)
    pipe = load_pipeline(tmp_path, dtype=torch.float32, device="cpu")
    given = {"num_inference_steps": 2, "max_sequence_length": LENGTH, "latents": noise(SHAPE), **SIZE}
    expected = pipe("a red cat", output_type="latent", **given).images
    torch.testing.assert_close(ode_latents(flow_of(pipe), ["a red cat"], steps=2), expected)
    pipe.text_encoder_2 = None
    with pytest.raises(ValueError, match="pipe has no text_encoder_2 to encode 'the dog' with"):
        flow_of(pipe).encode("the dog")


def test_batches() -> None:
    assert_independent(flow_of(), PROMPTS)


def test_gradients() -> None:
    pipe = tiny_sd3().to(dtype=torch.float64)
    pipe.vae.decoder.conv_out.weight.data *= 0.2  # within [0, 1], where nothing is clamped
    flow, x = flow_of(pipe), noise(SHAPE, 2).double()
    assert_gradient(lambda x: flow.velocity(x, 0.6, PROMPTS), x, step=3e-3, tolerance=1e-3)
    assert_gradient(flow.decode, x, step=1e-4, tolerance=1e-4)


def test_checkpointing() -> None:
    flow = flow_of(guidance_scale=1)
    blocks = flow.denoiser.transformer_blocks
    assert_recomputed(flow, lambda x: flow.velocity(x, 0.6, ["a cat"]), blocks)


def test_bfloat16_weights_see_exact_times() -> None:
    flow = flow_of(tiny_sd3().to(dtype=torch.bfloat16), guidance_scale=1)
    seen: list[Tensor] = []
    flow.denoiser.time_text_embed.time_proj.register_forward_pre_hook(
        lambda module, arguments: seen.append(arguments[0])
    )
    times = (1.0, 0.999, 0.998)  # neighbours of 1 in bfloat16 are 0.0039 away
    assert all(flow.velocity(noise(SHAPE), time, ["a"]).dtype == torch.float32 for time in times)
    assert torch.cat(seen).tolist() == pytest.approx([1000 * time for time in times], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_sequence_length": 513}, "max_sequence_length must be at most 512, got 513"),
        ({"height": 84}, "height must be at most 80, the last position that the model knows, got 84"),
        ({"guidance_scale": 1, "negative_prompt": "a"}, "negative_prompt has no effect without guidance"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"SD3Flow: {message}"):
        flow_of(**options)


def test_an_encoder_that_is_removed_later_is_missed() -> None:
    pipe = tiny_sd3()
    flow = flow_of(pipe, guidance_scale=1)
    pipe.text_encoder_3 = None
    with pytest.raises(ValueError, match="text_encoder_3"):
        flow.velocity(noise(SHAPE), 0.5, ["a new prompt"])


def test_saving_and_planning(tmp_path: Path) -> None:
    assert SD3Flow(tiny_sd3()).shape == (4, 16, 16)
    tiny_sd3().save_pretrained(tmp_path)
    pipe = load_pipeline(tmp_path, dtype=torch.float32, device="cpu")
    assert family_of(pipe).adapter("it", False, ["negative_prompt"]) is SD3Flow
    with pytest.raises(ModelError, match="has no strength; it has height, width, guidance_scale, negative_"):
        family_of(pipe).adapter("it", False, ["strength"])
    expected = flow_of().velocity(noise(SHAPE, 2), 0.5, PROMPTS)
    torch.testing.assert_close(flow_of(pipe).velocity(noise(SHAPE, 2), 0.5, PROMPTS), expected)
    assert_planned(tmp_path, flow_of(), **SIZE, max_sequence_length=LENGTH)
