"""Flux2Flow and Flux2KleinFlow against the pipelines of diffusers, on tiny random models of its classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2Pipeline
from model_checks import (
    assert_gradient,
    assert_independent,
    assert_planned,
    assert_recomputed,
    noise,
    ode_latents,
)
from tiny_models import SIZE, tiny_flux2, tiny_flux2_klein
from torch import Tensor

from noisetilt_kernels import unpack_latents
from noisetilt_kernels.models import Flux2Flow, Flux2KleinFlow, ModelError, family_of, load_pipeline

SHAPE = (4, 16, 32)
PROMPTS = ["a red cat", "the dog of the house"]
MAKERS: dict[str, Callable[[], Any]] = {"dev": tiny_flux2, "klein": tiny_flux2_klein}


def flow_of(pipe: Any, **options: Any) -> Any:
    adapter: Any = family_of(pipe).flow
    return adapter(pipe, **{**SIZE, **options})


@pytest.mark.parametrize(
    ("make", "scale"),
    [
        (tiny_flux2, 4.0),
        (tiny_flux2, 2.5),
        (tiny_flux2_klein, 1.0),
        (tiny_flux2_klein, 4.0),
        (lambda: tiny_flux2_klein(is_distilled=True), 4.0),
    ],
)
def test_ode_is_the_pipelines_path(make: Callable[[], Any], scale: float) -> None:
    pipe = make()
    patches = Flux2Pipeline._patchify_latents(noise(SHAPE, 2))
    given: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": scale, "output_type": "pt", **SIZE}
    images = pipe(prompt=list(PROMPTS), latents=patches, **given).images
    flow = flow_of(pipe, guidance_scale=scale)
    calls: list[None] = []
    pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(None))
    found = ode_latents(flow, PROMPTS)
    assert len(calls) == (8 if isinstance(flow, Flux2KleinFlow) and flow.guided else 4)
    assert flow.shape == SHAPE
    with torch.no_grad():
        decoded = flow.decode(found)
    assert decoded.std() > 0.05
    torch.testing.assert_close(decoded, images, rtol=0, atol=2e-5)


@pytest.mark.parametrize("steps", [4, 28])
@pytest.mark.parametrize("side", [32, 1072])
def test_sigmas_are_the_pipelines(steps: int, side: int) -> None:
    """The shift depends on the number of steps, up to 4300 patches."""
    pipe = tiny_flux2_klein()
    sigmas = flow_of(pipe, height=side, width=side // 4).sigmas(steps)
    pipe.transformer.forward = lambda hidden_states, **_: (torch.zeros_like(hidden_states),)
    pipe.vae.decode = lambda z, return_dict: (z[:, :3],)
    given: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 1.0, "output_type": "pt"}
    pipe(prompt="a", height=side, width=side // 4, **given)
    torch.testing.assert_close(sigmas, pipe.scheduler.sigmas, rtol=0, atol=2e-7)
    assert sigmas[0] == 1


def test_dev_embeds_its_guidance_and_klein_takes_two_passes() -> None:
    x = noise(SHAPE)
    dev, klein = tiny_flux2(), tiny_flux2_klein()
    weak, strong = (flow_of(dev, guidance_scale=scale).velocity(x, 0.6, ["a cat"]) for scale in (1, 8))
    assert not torch.allclose(weak, strong, atol=1e-3)
    towards, away = (
        flow_of(klein, guidance_scale=1).velocity(x, 0.6, [prompt]) for prompt in ("a cat", "the dog")
    )
    guided = flow_of(klein, guidance_scale=3, negative_prompt="the dog").velocity(x, 0.6, ["a cat"])
    torch.testing.assert_close(guided, 3 * towards - 2 * away)


@pytest.mark.parametrize("name", MAKERS)
def test_batches(name: str) -> None:
    assert_independent(flow_of(MAKERS[name]()), PROMPTS)


@pytest.mark.parametrize("name", MAKERS)
def test_gradients(name: str) -> None:
    pipe = MAKERS[name]().to(dtype=torch.float64)
    pipe.vae.decoder.conv_out.weight.data *= 0.2  # within [0, 1], where nothing is clamped
    flow, x = flow_of(pipe), noise(SHAPE, 2).double()
    # diffusers rotates in float32, so central differences are no more exact
    assert_gradient(lambda x: flow.velocity(x, 0.6, PROMPTS), x, step=1e-2, tolerance=3e-3)
    assert_gradient(flow.decode, x, step=1e-4, tolerance=1e-4)


def test_checkpointing() -> None:
    flow = flow_of(tiny_flux2())
    network = flow.denoiser
    blocks = [*network.transformer_blocks, *network.single_transformer_blocks]
    assert_recomputed(flow, lambda x: flow.velocity(x, 0.6, ["a cat"]), blocks)


@pytest.mark.parametrize("name", MAKERS)
def test_bfloat16_weights_see_exact_times(name: str) -> None:
    flow = flow_of(MAKERS[name]().to(dtype=torch.bfloat16), guidance_scale=1)
    seen: list[Tensor] = []
    flow.denoiser.time_guidance_embed.time_proj.register_forward_hook(
        lambda module, arguments, output: seen.append(arguments[0])
    )
    times = (1.0, 0.999, 0.998)  # neighbours of 1 in bfloat16 are 0.0039 away
    assert all(flow.velocity(noise(SHAPE), time, ["a"]).dtype == torch.float32 for time in times)
    calls = 2 if name == "dev" else 1  # every second call embeds the guidance scale
    assert torch.cat(seen[::calls]).tolist() == pytest.approx([1000 * time for time in times], abs=1e-4)


def test_latents_are_scaled_patch_by_patch() -> None:
    flow = flow_of(tiny_flux2())
    vae = flow.pipe.vae
    mean = vae.bn.running_mean.view(1, 1, -1).expand(1, 8 * 16, -1)
    latents = flow.unscaled(torch.zeros(1, *SHAPE))
    torch.testing.assert_close(latents, unpack_latents(mean, 16, 32))


@pytest.mark.parametrize("name", MAKERS)
def test_saving_and_planning(name: str, tmp_path: Path) -> None:
    pipe = MAKERS[name]()
    pipe.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path, dtype=torch.float32, device="cpu")
    expected = flow_of(pipe).velocity(noise(SHAPE, 2), 0.5, PROMPTS)
    torch.testing.assert_close(flow_of(loaded).velocity(noise(SHAPE, 2), 0.5, PROMPTS), expected)
    assert torch.equal(loaded.vae.bn.running_var, pipe.vae.bn.running_var)
    assert_planned(tmp_path, flow_of(MAKERS[name]()), **SIZE)


def test_errors() -> None:
    assert type(flow_of(tiny_flux2())) is Flux2Flow
    with pytest.raises(ModelError, match="has no negative_prompt; it has height, width, guidance_scale"):
        family_of(tiny_flux2()).adapter("it", False, ["negative_prompt"])
    for scale in (1.0, 4.0):  # a larger scale would not help
        with pytest.raises(ValueError, match="Flux2KleinFlow: negative_prompt must be empty for a distilled"):
            flow_of(tiny_flux2_klein(is_distilled=True), negative_prompt="the dog", guidance_scale=scale)
    with pytest.raises(TypeError, match="Flux2Flow: pipe must be a Flux2Pipeline of diffusers, got Flux2K"):
        Flux2Flow(tiny_flux2_klein())
    with pytest.raises(ValueError, match="Flux2Flow: guidance_scale must be finite and at least 0, got -1"):
        flow_of(tiny_flux2(), guidance_scale=-1)
