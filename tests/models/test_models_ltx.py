"""LTXFlow against the LTXPipeline of diffusers, on tiny random models of its classes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import LTXPipeline
from model_checks import (
    assert_gradient,
    assert_independent,
    assert_planned,
    assert_recomputed,
    gradient,
    noise,
    ode_latents,
)
from tiny_ltx import SIZE, tiny_ltx, tiny_ltx_0_9_1
from torch import Tensor

from noisetilt_kernels.models import LTXFlow, family_of, load_pipeline

SHAPE = (4, 5, 4, 8)
PROMPTS = ["a red cat", "the dog of the house runs"]


def flow_of(pipe: LTXPipeline | None = None, **options: Any) -> LTXFlow:
    return LTXFlow(pipe or tiny_ltx(), **{**SIZE, **options})


@pytest.mark.parametrize(("scale", "negative", "fps"), [(1.0, "", 25), (3.0, "", 25), (2.5, "the house", 8)])
def test_ode_is_the_pipelines_path(scale: float, negative: str, fps: int) -> None:
    pipe = tiny_ltx()
    flow = flow_of(pipe, guidance_scale=scale, negative_prompt=negative, fps=fps)
    given = {"num_inference_steps": 4, "guidance_scale": scale, "frame_rate": fps, **SIZE}
    given |= {"negative_prompt": [negative] * 2, "latents": LTXPipeline._pack_latents(noise(SHAPE, 2))}
    latents = pipe(PROMPTS, output_type="latent", **given).frames
    videos = pipe(PROMPTS, output_type="pt", **given).frames
    found = ode_latents(flow, PROMPTS)
    assert flow.shape == SHAPE and videos.shape == (2, 9, 3, 32, 64) and videos.std() > 0.05
    torch.testing.assert_close(LTXPipeline._pack_latents(found), latents, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(flow.decode(found).transpose(1, 2), videos, rtol=0, atol=2e-5)


def test_decoding_with_a_time_and_noise_is_the_pipelines_without_noise() -> None:
    pipe = tiny_ltx_0_9_1()
    given = {"num_inference_steps": 2, "guidance_scale": 1, "decode_timestep": 0.05, **SIZE}
    given |= {"latents": LTXPipeline._pack_latents(noise(SHAPE, 2)), "decode_noise_scale": 0.0}
    given |= {"generator": torch.Generator().manual_seed(7), "output_type": "pt"}
    torch.manual_seed(0)  # the state from which the decoder draws
    expected = pipe(PROMPTS, **given).frames
    flow = flow_of(pipe, guidance_scale=1, decode_timestep=0.05)
    latents = ode_latents(flow, PROMPTS, steps=2)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    videos = flow.decode(latents)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(videos.transpose(1, 2), expected, rtol=0, atol=2e-5)
    assert torch.equal(flow.decode(latents), videos)
    torch.testing.assert_close(flow.decode(latents[1:]), videos[1:], rtol=0, atol=1e-5)
    other = flow_of(pipe, guidance_scale=1).decode(latents)
    assert not torch.allclose(other, videos, atol=1e-3)


def test_slicing_decodes_a_batch_with_a_time() -> None:
    pipe = tiny_ltx_0_9_1()
    model = flow_of(pipe)
    latents = noise(SHAPE, 3)
    expected = model.decode(latents)
    pipe.vae.enable_slicing()
    torch.testing.assert_close(model.decode(latents), expected)


def test_batches_of_prompts_of_unequal_lengths() -> None:
    assert_independent(flow_of(), PROMPTS)


def test_gradient_of_the_velocity() -> None:
    flow, x = flow_of(tiny_ltx().to(dtype=torch.float64)), noise(SHAPE, 2).double()
    # diffusers computes rotations and norms in float32, so central differences are no more exact
    assert_gradient(lambda x: flow.velocity(x, 0.6, PROMPTS), x, step=1e-2, tolerance=2e-3)


@pytest.mark.parametrize("make", [tiny_ltx, tiny_ltx_0_9_1])
def test_gradient_of_the_decoder(make: Any) -> None:
    pipe = make().to(dtype=torch.float64)
    pipe.vae.decoder.conv_out.conv.weight.data *= 0.1  # within [0, 1], where nothing is clamped
    assert_gradient(flow_of(pipe).decode, noise(SHAPE, 2).double(), step=3e-3, tolerance=2e-3)


def test_checkpointing() -> None:
    flow = flow_of(guidance_scale=1)
    blocks = flow.denoiser.transformer_blocks
    assert_recomputed(flow, lambda x: flow.velocity(x, 0.6, ["a cat"]), blocks)


def test_recomputation_sees_the_same_noise() -> None:
    flow, found = flow_of(tiny_ltx_0_9_1()), []
    for enabled in (False, True):
        flow.set_gradient_checkpointing(enabled)
        found.append(gradient(flow.decode, noise(SHAPE)))
    torch.testing.assert_close(found[1], found[0])


def test_offloading() -> None:
    def slopes(flow: LTXFlow) -> Tensor:
        return gradient(lambda x: flow.decode(x - flow.velocity(x, 0.5, PROMPTS)), noise(SHAPE, 2))

    expected = slopes(flow_of(tiny_ltx_0_9_1()))
    flow = flow_of(tiny_ltx_0_9_1())
    flow.encode(PROMPTS)
    for network in (flow.pipe.transformer, flow.pipe.vae):
        cpu_offload(network, torch.device("cpu"))  # as pipe.enable_sequential_cpu_offload() does
    torch.testing.assert_close(slopes(flow), expected)
    pipe = tiny_ltx_0_9_1()
    pipe.enable_model_cpu_offload(device="cpu")
    torch.testing.assert_close(slopes(flow_of(pipe)), expected)
    assert pipe.vae._hf_hook.prev_module_hook is None  # moves no denoiser away before its backward
    assert pipe.transformer._hf_hook.prev_module_hook.model is pipe.text_encoder


def test_bfloat16_weights_see_exact_times() -> None:
    flow = flow_of(tiny_ltx().to(dtype=torch.bfloat16), guidance_scale=1)
    seen: list[float] = []
    flow.denoiser.time_embed.emb.time_proj.register_forward_pre_hook(
        lambda module, arguments: seen.extend(arguments[0].tolist())
    )
    times = (1.0, 0.999, 0.998)  # neighbours of 1 in bfloat16 are 0.0039 away
    assert all(flow.velocity(noise(SHAPE), time, ["a"]).dtype == torch.float32 for time in times)
    assert seen == pytest.approx([1000 * time for time in times], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 10}, "num_frames must be 2 k . 1, got 10; 9 and 11 are nearest"),
        ({"height": 36}, "height must be a multiple of 8, got 36"),
        ({"guidance_scale": 1, "negative_prompt": "a"}, "negative_prompt has no effect without guidance"),
        ({"decode_timestep": 1.5}, r"decode_timestep must be in \[0, 1\], got 1.5"),
        ({"fps": 0}, "fps must be"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"LTXFlow: {message}"):
        flow_of(**options)


@pytest.mark.parametrize("make", [tiny_ltx, tiny_ltx_0_9_1])
def test_saving_and_planning(make: Any, tmp_path: Path) -> None:
    default = LTXFlow(make())
    assert default.shape == (4, 81, 64, 88) and default.fps == 25
    make().save_pretrained(tmp_path)
    pipe = load_pipeline(tmp_path, dtype=torch.float32, device="cpu")
    assert family_of(pipe).videos and family_of(pipe).adapter("it", False, ["num_frames"]) is LTXFlow
    expected = flow_of(make()).velocity(noise(SHAPE, 2), 0.5, PROMPTS)
    torch.testing.assert_close(flow_of(pipe).velocity(noise(SHAPE, 2), 0.5, PROMPTS), expected)
    assert_planned(tmp_path, flow_of(make()), **SIZE)
