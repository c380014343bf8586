"""WanFlow for Wan2.2 against the WanPipeline of diffusers, on tiny random models of its classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import CpuOffload, add_hook_to_module
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from model_checks import (
    assert_gradient,
    assert_independent,
    assert_planned,
    assert_recomputed,
    gradient,
    noise,
    ode_latents,
)
from tiny_wan import tiny_wan, tiny_wan_5b, tiny_wan_a14b
from torch import Tensor

from noisetilt_kernels.models import WanFlow, load_pipeline
from noisetilt_kernels.models.memory import plan_memory

SIZE = {"height": 32, "width": 64, "num_frames": 9}
PROMPTS = ["a red cat", "the dog runs of the house"]
SHAPES = {"a14b": (4, 3, 4, 8), "5b": (4, 3, 2, 4)}
MAKERS: dict[str, Callable[..., WanPipeline]] = {"a14b": tiny_wan_a14b, "5b": tiny_wan_5b}


def flow_of(pipe: WanPipeline, **options: Any) -> WanFlow:
    return WanFlow(pipe, **{**SIZE, **options})


def calls_of(pipe: WanPipeline) -> list[str]:
    """Return a list that gets the name of each transformer that is called."""
    calls: list[str] = []
    for name in ("transformer", "transformer_2"):
        if getattr(pipe, name) is not None:
            getattr(pipe, name).register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    return calls


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a14b", {"guidance_scale": 1.0}),
        ("a14b", {"guidance_scale": 4.0}),
        ("a14b", {"guidance_scale": 4.0, "guidance_scale_2": 2.5}),
        ("a14b", {"guidance_scale": 4.0, "guidance_scale_2": 1.0}),
        ("5b", {"guidance_scale": 1.0}),
        ("5b", {"guidance_scale": 4.0}),
    ],
)
def test_ode_is_the_pipelines_path(name: str, options: dict[str, float]) -> None:
    pipe = MAKERS[name](scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0))
    shape = SHAPES[name]
    given: dict[str, Any] = {"latents": noise(shape, 2), "num_inference_steps": 5, **SIZE, **options}
    latents = pipe(PROMPTS, negative_prompt=["the house"] * 2, output_type="latent", **given).frames
    videos = pipe(PROMPTS, negative_prompt=["the house"] * 2, output_type="pt", **given).frames
    flow = flow_of(pipe, **options, negative_prompt="the house" if options["guidance_scale"] > 1 else "")
    calls = calls_of(pipe)
    found = ode_latents(flow, PROMPTS, steps=5)
    assert flow.shape == shape
    assert len(set(calls)) == len(flow.denoisers)  # both experts
    torch.testing.assert_close(found, latents, rtol=0, atol=2e-5)
    with torch.no_grad():
        decoded = flow.decode(found)
    assert decoded.shape == (2, 3, 9, 32, 64) and decoded.std() > 0.05
    torch.testing.assert_close(decoded.transpose(1, 2), videos, rtol=0, atol=2e-5)


@pytest.mark.parametrize("boundary", [0.875, 0.9])
def test_the_boundary_is_one_of_shifted_times(boundary: float) -> None:
    pipe = tiny_wan_a14b(boundary, FlowMatchEulerDiscreteScheduler(shift=5.0))
    flow, calls = flow_of(pipe, guidance_scale=1), calls_of(pipe)
    exact = float(torch.tensor(boundary))  # a time of the scheduler is float32
    times = (1.0, boundary + 1e-3, exact, boundary - 1e-3, 0.1)
    for time in times:
        flow.velocity(noise(flow.shape), time, ["a cat"])
    assert calls == ["transformer"] * 3 + ["transformer_2"] * 2
    # unshifted, two of 8 times would be above the boundary; shifted by 5, three are above 0.9
    calls.clear()
    ode_latents(flow, ["a cat"], steps=8)
    above = int((1000 * flow.sigmas(8) >= 1000 * boundary).sum())
    assert above > 2 and calls == ["transformer"] * above + ["transformer_2"] * (8 - above)


def test_each_expert_has_its_scale() -> None:
    flow = flow_of(tiny_wan_a14b(), guidance_scale=4, guidance_scale_2=1, negative_prompt="the house")
    calls = calls_of(flow.pipe)
    for time in (0.95, 0.5):
        flow.velocity(noise(flow.shape), time, ["a cat"])
    assert calls == ["transformer", "transformer", "transformer_2"]


@pytest.mark.parametrize("name", MAKERS)
def test_batches(name: str) -> None:
    flow = flow_of(MAKERS[name]())
    assert_independent(flow, PROMPTS, sigma=0.9)
    assert_independent(flow, PROMPTS, sigma=0.5)


@pytest.mark.parametrize("name", MAKERS)
def test_gradients(name: str) -> None:
    pipe = MAKERS[name]().to(dtype=torch.float64)
    pipe.vae.decoder.conv_out.weight.data *= 0.2  # within [0, 1], where nothing is clamped
    flow = flow_of(pipe)
    x = noise(flow.shape).double()
    # diffusers normalises and rotates in float32, so central differences are no more exact
    for time in (0.95, 0.6):
        assert_gradient(lambda x, time=time: flow.velocity(x, time, ["a cat"]), x, step=1e-2, tolerance=3e-3)
    assert_gradient(flow.decode, x, step=1e-3, tolerance=3e-3)


@pytest.mark.parametrize("sigma", [0.95, 0.5])
def test_checkpointing_of_each_expert(sigma: float) -> None:
    flow = flow_of(tiny_wan_a14b(), guidance_scale=1)
    expert = flow.denoisers[0 if sigma > 0.9 else 1]
    assert_recomputed(flow, lambda x: flow.velocity(x, sigma, ["a cat"]), expert.blocks)


def test_recomputing_the_decoder_of_5b_changes_no_gradient() -> None:
    flow = flow_of(tiny_wan_5b())
    found = []
    for enabled in (False, True):
        flow.set_gradient_checkpointing(enabled)
        found.append(gradient(flow.decode, noise(flow.shape)))
    torch.testing.assert_close(*found)


def test_model_offload_moves_the_other_expert_away() -> None:
    pipe = tiny_wan_a14b()
    moved: list[str] = []

    class Recorder(CpuOffload):
        def init_hook(self, module: torch.nn.Module) -> torch.nn.Module:
            moved.extend(name for name, one in pipe.components.items() if one is module)
            return module

    flow = flow_of(pipe, guidance_scale=1)
    flow.encode("a cat")
    for name in ("text_encoder", "transformer", "transformer_2"):
        add_hook_to_module(getattr(pipe, name), Recorder("cpu"))
    for time, other in ((0.95, "transformer_2"), (0.5, "transformer")):
        moved.clear()
        flow.velocity(noise(flow.shape), time, ["a cat"])
        # older versions of accelerate move the text encoder again, which is on the CPU
        assert [name for name in moved if name != "text_encoder"] == [other]
        active = pipe.transformer_2 if other == "transformer" else pipe.transformer
        assert active._hf_hook.prev_module_hook.model is pipe.text_encoder


def test_defaults_and_errors() -> None:
    assert WanFlow(tiny_wan_5b()).shape == (4, 21, 30, 52) and flow_of(tiny_wan_5b()).fps == 24
    assert flow_of(tiny_wan_a14b()).fps == 16
    with pytest.raises(ValueError, match="WanFlow: height must be a multiple of 32, got 48; 32 and 64 are"):
        flow_of(tiny_wan_5b(), height=48)
    with pytest.raises(ValueError, match="guidance_scale_2 must be None for a model with one transformer"):
        flow_of(tiny_wan(), guidance_scale_2=3)
    with pytest.raises(ValueError, match="guidance_scale_2 must be finite and at least 0, got -1"):
        flow_of(tiny_wan_a14b(), guidance_scale_2=-1)
    pipe = tiny_wan_a14b()
    pipe.transformer_2.register_to_config(in_channels=8)
    with pytest.raises(ValueError, match="pipe must have a transformer_2 with 4 input and output channels"):
        flow_of(pipe)
    pipe = tiny_wan()
    pipe.register_to_config(boundary_ratio=0.9)
    with pytest.raises(ValueError, match=r"pipe must have a transformer_2, .* boundary_ratio of 0\.9"):
        flow_of(pipe)


@pytest.mark.parametrize("name", MAKERS)
def test_saving_and_planning(name: str, tmp_path: Path) -> None:
    MAKERS[name]().save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path, dtype=torch.float32, device="cpu")

    def outputs(pipe: WanPipeline) -> list[Tensor]:
        flow = flow_of(pipe)
        return [flow.velocity(noise(flow.shape), time, ["a cat"]) for time in (0.95, 0.5)]

    for found, expected in zip(outputs(loaded), outputs(MAKERS[name]()), strict=True):
        torch.testing.assert_close(found, expected)
    if name == "5b":
        assert_planned(tmp_path, flow_of(MAKERS[name]()), **SIZE)
        return
    together, offloaded = (plan_memory(tmp_path, offload=offload, **SIZE) for offload in (False, True))
    assert together.denoiser == 2 * 2 * sum(one.numel() for one in loaded.transformer.parameters())
    saving = together.denoiser // 2 + together.text_encoders
    assert together.total - offloaded.total == saving  # one expert at a time
    # passes of each expert; without checkpointing two passes keep twice as much
    given = {**SIZE, "gradient_checkpointing": False}
    plans = [
        plan_memory(tmp_path, guidance_scale=first, guidance_scale_2=second, **given).activations
        for first, second in ((1, 1), (4, 1), (1, 4), (4, 4))
    ]
    assert plans[1] == plans[2] == plans[3] > plans[0]
