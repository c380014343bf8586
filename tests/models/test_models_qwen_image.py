"""QwenImageFlow against the QwenImagePipeline of diffusers, on tiny random models of its classes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImagePipeline
from model_checks import (
    assert_gradient,
    assert_independent,
    assert_planned,
    assert_recomputed,
    gradient,
    kept_for_backward,
    noise,
    ode_latents,
)
from tiny_models import SIZE, tiny_qwen_image, without_template
from torch import Tensor

from noisetilt_kernels import pack_latents, unpack_latents
from noisetilt_kernels.models import QwenImageFlow, family_of, load_pipeline
from noisetilt_kernels.models.causal_vae import _decode, decode_frames

SHAPE = (4, 16, 32)
PROMPTS = ["a red cat", "the dog of the house"]


def flow_of(pipe: QwenImagePipeline | None = None, **options: Any) -> QwenImageFlow:
    return QwenImageFlow(pipe or tiny_qwen_image(), **{**SIZE, **options})


@pytest.mark.parametrize(("scale", "negative"), [(1.0, " "), (4.0, " "), (2.5, "the long house")])
def test_ode_is_the_pipelines_path(scale: float, negative: str) -> None:
    pipe = tiny_qwen_image()
    given: dict[str, Any] = {"num_inference_steps": 4, "true_cfg_scale": scale, **SIZE}
    if scale > 1:
        given["negative_prompt"] = [negative] * 2
    latents = pack_latents(noise(SHAPE, 2))
    packed = pipe(PROMPTS, latents=latents, output_type="latent", **given).images
    images = pipe(PROMPTS, latents=latents, output_type="pt", **given).images
    flow = flow_of(pipe, true_cfg_scale=scale, negative_prompt=negative)
    found = ode_latents(flow, PROMPTS)
    assert flow.shape == SHAPE
    torch.testing.assert_close(found, unpack_latents(packed, *SHAPE[1:]), rtol=0, atol=2e-5)
    with torch.no_grad():
        decoded = flow.decode(found)
    assert decoded.std() > 0.05
    torch.testing.assert_close(decoded, images, rtol=0, atol=2e-5)


def test_guided_patches_have_the_norm_of_unguided_ones() -> None:
    flow = flow_of(true_cfg_scale=4.0, negative_prompt="the house")
    x = noise(SHAPE)
    plain = flow.conditional_velocity(x, 0.6, ["a cat"])
    away = flow.conditional_velocity(x, 0.6, ["the house"])
    guided, linear = flow.velocity(x, 0.6, ["a cat"]), away + 4 * (plain - away)
    norms = [pack_latents(one).norm(dim=-1) for one in (guided, plain, linear)]
    torch.testing.assert_close(norms[0], norms[1])
    assert not torch.allclose(norms[2], norms[1], rtol=1e-2)
    cosine = torch.cosine_similarity(pack_latents(guided), pack_latents(linear), dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_prompts_of_unequal_lengths() -> None:
    flow = flow_of()
    assert_independent(flow, PROMPTS)
    lengths = [encoded["tokens"].shape[1] for encoded in flow.prompts.get([*PROMPTS, "a" * 900])]
    assert lengths[1] - lengths[0] == len(PROMPTS[1]) - len(PROMPTS[0]) and lengths[2] == 512


def test_gradients() -> None:
    pipe = tiny_qwen_image().to(dtype=torch.float64)
    pipe.vae.decoder.conv_out.weight.data *= 0.2  # within [0, 1], where nothing is clamped
    flow, x = flow_of(pipe), noise(SHAPE, 2).double()
    # diffusers normalises and rotates in float32, so central differences are no more exact
    assert_gradient(lambda x: flow.velocity(x, 0.6, PROMPTS), x, step=1e-2, tolerance=5e-3)
    assert_gradient(flow.decode, x, step=1e-3, tolerance=3e-3)


def test_clamped_pixels_keep_their_gradient() -> None:
    pipe = tiny_qwen_image()
    pipe.vae.decoder.conv_out.bias.data += 5  # all pixels are white
    flow = flow_of(pipe)
    assert flow.decode(noise(SHAPE)).min() == 1
    assert gradient(flow.decode, noise(SHAPE)).abs().max() > 0


def test_checkpointing() -> None:
    flow = flow_of(true_cfg_scale=1)
    blocks = flow.denoiser.transformer_blocks
    assert_recomputed(flow, lambda x: flow.velocity(x, 0.6, ["a cat"]), blocks)
    resnets = [resnet for block in flow.pipe.vae.decoder.up_blocks for resnet in block.resnets]
    assert_recomputed(flow, flow.decode, [resnet.norm1 for resnet in resnets])


def test_bfloat16_weights_see_exact_times() -> None:
    flow = flow_of(tiny_qwen_image().to(dtype=torch.bfloat16), true_cfg_scale=1)
    seen: list[Tensor] = []
    flow.denoiser.time_text_embed.time_proj.register_forward_hook(
        lambda module, arguments, output: seen.append(arguments[0])
    )
    times = (1.0, 0.999, 0.998)  # neighbours of 1 in bfloat16 are 0.0039 away
    assert all(flow.velocity(noise(SHAPE), time, ["a"]).dtype == torch.float32 for time in times)
    assert torch.cat(seen).tolist() == pytest.approx(list(times), abs=1e-7)


def test_defaults() -> None:
    assert QwenImageFlow(tiny_qwen_image()).shape == (4, 128, 128)
    with pytest.raises(ValueError, match=r"negative_prompt has no effect .* true_cfg_scale must be above 1"):
        flow_of(true_cfg_scale=1, negative_prompt="the dog")


def test_saving_and_planning(tmp_path: Path) -> None:
    tiny_qwen_image().save_pretrained(tmp_path)
    pipe = load_pipeline(tmp_path, dtype=torch.float32, device="cpu")
    assert family_of(pipe).adapter("it", False, ["true_cfg_scale"]) is QwenImageFlow
    flow = flow_of(without_template(pipe))
    expected = flow_of().velocity(noise(SHAPE, 2), 0.5, PROMPTS)
    torch.testing.assert_close(flow.velocity(noise(SHAPE, 2), 0.5, PROMPTS), expected)
    assert_planned(tmp_path, flow_of(), **SIZE)


def test_a_single_frame_needs_no_memory_of_frames() -> None:
    """The decoder's memory is for the next frame: without it the image is the same, and less is kept."""
    vae = tiny_qwen_image().vae.requires_grad_(False)
    latents = noise(SHAPE, 2).unsqueeze(2)
    found, expected = decode_frames(vae, latents, False), vae.decode(latents).sample
    assert torch.equal(found.clamp(-1, 1), expected)
    vae.clear_cache()

    def with_memory(x: Tensor) -> Tensor:
        decoded: Tensor = _decode(vae, (), True, vae.post_quant_conv(x), True, *vae._feat_map)[0]
        return decoded

    def without(x: Tensor) -> Tensor:
        return decode_frames(vae, x, True)

    x = latents.requires_grad_()
    assert torch.equal(gradient(without, x.detach()), gradient(with_memory, x.detach()))
    kept = [kept_for_backward((vae,), lambda call=call: call(x)) for call in (without, with_memory)]
    assert kept[0] < 0.75 * kept[1]
