"""WanFlow against the WanPipeline of diffusers, on tiny random models of its classes."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import model_checks
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline
from model_checks import assert_gradient, gradient, kept_for_backward, redness
from tiny_wan import SIZE, tiny_wan
from torch import Tensor

from noisetilt_kernels import sampling
from noisetilt_kernels.config import Sample, resolve_preset
from noisetilt_kernels.models import ModelError, WanFlow, family_of, load_pipeline
from noisetilt_kernels.models.memory import MemoryPlan, PeakMemory, plan_memory
from noisetilt_kernels.models.times import snap_start

ODE = sampling.Schedule("constant", 0)
PROMPTS = ["a red cat", "the dog runs"]
SHAPE = (4, 3, 4, 6)


def flow_of(pipe: WanPipeline, **options: Any) -> WanFlow:
    return WanFlow(pipe, **{**SIZE, **options})


def noise(seed: int = 0, count: int = 1) -> Tensor:
    return model_checks.noise(SHAPE, count, seed)


# ---- comparison with the pipeline ----


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_ode_makes_the_pipelines_videos(scale: float) -> None:
    pipe = tiny_wan(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    given: dict[str, Any] = {"latents": noise(0, 2), "num_inference_steps": 4, "output_type": "pt", **SIZE}
    expected = pipe(PROMPTS, negative_prompt=["the house"] * 2, guidance_scale=scale, **given).frames
    flow = flow_of(pipe, guidance_scale=scale, negative_prompt="the house" if scale > 1 else "")
    result = sampling.base(
        flow, redness, PROMPTS, steps=4, schedule=ODE, options=sampling.SamplerOptions(micro_batch=2)
    )
    videos = flow.decode(result.latents)
    assert flow.shape == SHAPE and videos.shape == (2, 3, 9, 32, 48)
    assert videos.std() > 0.05
    torch.testing.assert_close(videos.transpose(1, 2), expected, rtol=0, atol=2e-5)


def test_defaults_are_those_of_the_model() -> None:
    """Defaults are 480p and 81 frames at 16 per second."""
    flow = WanFlow(tiny_wan())
    assert flow.shape == (4, 21, 60, 104) and flow.fps == 16
    x = noise()
    default, given = flow_of(flow.pipe), flow_of(flow.pipe, guidance_scale=5, negative_prompt="")
    assert torch.equal(default.velocity(x, 0.5, ["a"]), given.velocity(x, 0.5, ["a"]))


@pytest.mark.parametrize("steps", [2, 25])
def test_times_are_the_schedulers(steps: int) -> None:
    pipe = tiny_wan()
    sigmas = flow_of(pipe).sigmas(steps)
    assert pipe.scheduler.num_inference_steps is None  # unchanged
    pipe.scheduler.set_timesteps(steps)
    torch.testing.assert_close(sigmas, pipe.scheduler.sigmas, rtol=0, atol=2e-6)
    assert sigmas[0] == 1 and sigmas[-1] == 0 and bool((sigmas.diff() < 0).all())


def test_a_first_time_near_one_becomes_one() -> None:
    assert (
        snap_start(torch.tensor([0.9995, 0.9994, 0.0])).tolist() == torch.tensor([1.0, 0.9994, 0.0]).tolist()
    )
    assert snap_start(torch.tensor([0.998, 0.5, 0.0])).tolist() == torch.tensor([0.998, 0.5, 0.0]).tolist()


def test_timesteps_are_not_rounded() -> None:
    pipe = tiny_wan().to(torch.bfloat16)
    seen: list[Tensor] = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, arguments, keywords: seen.append(keywords["timestep"]), with_kwargs=True
    )
    velocity = flow_of(pipe).velocity(noise(), 0.98765, ["a cat"])
    assert velocity.dtype == torch.float32
    assert len(seen) == 2
    for time in seen:
        assert time.dtype == torch.float32 and time.item() == pytest.approx(987.65, abs=1e-3)


def test_guidance_takes_two_passes_and_one_at_scale_1() -> None:
    pipe = tiny_wan()
    calls: list[int] = []
    pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    x = noise()
    towards, away = (
        flow_of(pipe, guidance_scale=1).velocity(x, 0.7, [prompt]) for prompt in ("a cat", "the house")
    )
    assert len(calls) == 2 and not torch.allclose(towards, away, atol=1e-4)
    guided = flow_of(pipe, guidance_scale=3, negative_prompt="the house").velocity(x, 0.7, ["a cat"])
    assert len(calls) == 4
    torch.testing.assert_close(guided, 3 * towards - 2 * away)


def test_prompts_are_encoded_once_and_ahead() -> None:
    pipe = tiny_wan()
    flow = flow_of(pipe, negative_prompt="the house")
    flow.encode(PROMPTS)
    pipe.text_encoder = None
    flow.velocity(noise(0, 2), 0.5, PROMPTS)
    with pytest.raises(ValueError, match="pipe has no text_encoder to encode 'a cat'"):
        flow.velocity(noise(), 0.5, ["a cat"])


def test_offloaded_weights_are_moved_before_decoding() -> None:
    """Decoding bypasses vae.decode, so it must call the offload hook."""
    pipe = tiny_wan()
    brought: list[Any] = []
    pipe.vae._hf_hook = SimpleNamespace(execution_device="cpu", pre_forward=brought.append)
    flow_of(pipe).decode(noise())
    assert brought == [pipe.vae]


# ---- gradients ----


def test_gradient_of_the_velocity() -> None:
    flow = flow_of(tiny_wan().to(dtype=torch.float64))
    # diffusers normalises and rotates in float32, so central differences are no more exact
    assert_gradient(lambda x: flow.velocity(x, 0.6, ["a cat"]), noise().double(), step=1e-2, tolerance=2e-3)


def test_gradient_of_the_decoder() -> None:
    pipe = tiny_wan().to(dtype=torch.float64)
    pipe.vae.decoder.conv_out.weight.data *= 0.2  # within [0, 1], where nothing is clamped
    # the decoder doubles sides in float32, so central differences are no more exact
    assert_gradient(flow_of(pipe).decode, noise().double(), step=1e-3, tolerance=3e-3)


def test_clamped_values_keep_their_gradient() -> None:
    pipe = tiny_wan()
    pipe.vae.decoder.conv_out.bias.data += 5  # all pixels are white
    flow = flow_of(pipe)
    videos = flow.decode(noise())
    assert videos.max() == 1 and videos.min() == 1
    assert gradient(flow.decode, noise()).abs().min() > 0


def test_recomputing_changes_no_gradient() -> None:
    pipe = tiny_wan()
    keep, again = (flow_of(pipe, gradient_checkpointing=enabled) for enabled in (False, True))
    assert pipe.transformer.gradient_checkpointing
    x = noise()
    torch.testing.assert_close(
        gradient(lambda x: again.velocity(x, 0.5, ["a"]), x),
        gradient(lambda x: keep.velocity(x, 0.5, ["a"]), x),
    )
    again.set_gradient_checkpointing(True)
    recomputed = gradient(again.decode, x)
    again.set_gradient_checkpointing(False)
    torch.testing.assert_close(recomputed, gradient(keep.decode, x))


@pytest.mark.slow
def test_the_decoders_memory_grows_little_with_frames() -> None:
    """Peak over forward and backward, with recomputed blocks and memory kept for every fourth frame of 16."""
    pipe = tiny_wan()
    peaks = {}
    for enabled in (False, True):
        for frames in (13, 61):
            flow = WanFlow(pipe, height=16, width=16, num_frames=frames, gradient_checkpointing=enabled)
            x = torch.randn(1, *flow.shape, requires_grad=True)
            with PeakMemory() as alive:
                torch.autograd.grad(flow.decode(x).sum(), x)
            peaks[enabled, frames] = alive.peak
    assert peaks[True, 13] < 0.38 * peaks[False, 13]
    grown = {enabled: peaks[enabled, 61] - peaks[enabled, 13] for enabled in (False, True)}
    assert grown[True] < 0.08 * grown[False]


# ---- samplers ----


@pytest.mark.parametrize("method", ["ntrk", "dps", "svdd", "best of"])
def test_samplers_steer_videos_with_any_micro_batch(method: str) -> None:
    flow = flow_of(tiny_wan(), guidance_scale=2)
    options: dict[str, dict[str, Any]] = {
        "ntrk": {"rho": 0.5},
        "dps": {"strength": 1.0},
        "svdd": {"candidates": 2},
        "best of": {"n": 2},
    }

    def run(micro_batch: int) -> sampling.Result:
        given = {
            "steps": 3,
            "options": sampling.SamplerOptions(seed=2, micro_batch=micro_batch),
            **options[method],
        }
        if method == "best of":
            return sampling.best_of_n(sampling.ntrk, flow, redness, PROMPTS, **given)
        return getattr(sampling, method)(flow, redness, PROMPTS, **given)

    one, two = run(1), run(2)
    torch.testing.assert_close(one.latents, two.latents, rtol=0, atol=1e-4)
    assert one.latents.shape[1:] == SHAPE
    base = sampling.base(flow, redness, PROMPTS, steps=3, options=sampling.SamplerOptions(seed=2))
    if method in ("ntrk", "dps"):
        assert bool((one.rewards > base.rewards).all())


def test_the_real_latent_has_the_preset_of_wan() -> None:
    sample = Sample(16 * 21, 60, 104)
    assert resolve_preset("auto", sample, 1e-3) == resolve_preset("wan", sample, 1e-3)


# ---- errors ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 80}, r"num_frames must be 4 k \+ 1, got 80; 77 and 81 are nearest"),
        ({"num_frames": 0}, "num_frames must be at least 1"),
        ({"height": 40}, "height must be a multiple of 16, got 40; 32 and 48 are nearest"),
        ({"guidance_scale": -1}, "guidance_scale must be finite and at least 0"),
        ({"fps": 0}, "fps must be at least 1"),
    ],
)
def test_invalid_sizes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"WanFlow: {message}"):
        flow_of(tiny_wan(), **options)


def test_schedulers_without_the_times_of_a_flow() -> None:
    for scheduler in (DDIMScheduler(), UniPCMultistepScheduler()):
        with pytest.raises(
            ValueError, match=f"times of a flow, from 1 to 0, got {type(scheduler).__name__} with other times"
        ):
            flow_of(tiny_wan(scheduler=scheduler)).sigmas(4)


def test_other_pipelines_are_refused() -> None:
    with pytest.raises(TypeError, match="pipe must be a WanPipeline of diffusers, got object"):
        WanFlow(object())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="negative_prompt must be a string"):
        flow_of(tiny_wan(), negative_prompt=None)
    with pytest.raises(ValueError, match="one latent for each prompt"):
        flow_of(tiny_wan()).velocity(noise(), 0.5, PROMPTS)


# ---- folders ----


def test_saving_and_loading(tmp_path: Path) -> None:
    tiny_wan().save_pretrained(tmp_path)
    pipe = load_pipeline(tmp_path, dtype=torch.float32, device="cpu")
    assert family_of(pipe).videos
    expected = flow_of(tiny_wan()).velocity(noise(), 0.5, ["a cat"])
    torch.testing.assert_close(flow_of(pipe).velocity(noise(), 0.5, ["a cat"]), expected)
    with pytest.raises(ModelError, match="takes more than one step"):
        family_of(pipe).adapter("wan", one_step=True)
    with pytest.raises(ModelError, match="has no strength; it has height, width, num_frames"):
        family_of(pipe).adapter("wan", False, ["strength"])


@pytest.mark.slow
def test_planned_memory_matches_the_real_graph(tmp_path: Path) -> None:
    tiny_wan().save_pretrained(tmp_path)
    planned = plan_memory(tmp_path, dtype=torch.float32, **SIZE)
    assert planned.shape == SHAPE and planned.pixels == (3, 9, 32, 48)
    assert plan_memory(tmp_path, dtype=torch.float32, negative_prompt="the house", **SIZE) == planned
    pipe = load_pipeline(tmp_path, dtype=torch.float32, device="cpu")
    flow = flow_of(pipe)
    flow.encode("a")
    x = noise().requires_grad_()
    networks = [pipe.transformer, pipe.vae]
    kept = kept_for_backward(networks, lambda: flow.velocity(x, 0.5, ["a"]))
    kept += kept_for_backward(networks, lambda: flow.decode(x))
    # the difference is temporary memory
    assert kept <= planned.activations <= 1.3 * kept


@pytest.mark.slow
def test_the_plan_counts_backward_reward_and_text_encoders(tmp_path: Path) -> None:
    tiny_wan().save_pretrained(tmp_path)

    def planned(**options: Any) -> MemoryPlan:
        return plan_memory(tmp_path, dtype=torch.float32, **SIZE, **options)

    # the backward, which recomputes activations
    assert planned(gradient_checkpointing=True).activations > 2 * planned(gradient=False).activations
    # the reward
    copies = planned(
        load_reward=lambda: lambda videos, prompts: videos.repeat(1, 40, 1, 1, 1).square().flatten(1).sum(1)
    )
    assert copies.activations > planned().activations + 40 * 4 * math.prod(copies.pixels)
    # text encoders, alone on the device and larger than everything else
    config = tmp_path / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 10**7}))
    large = planned(offload=True)
    assert large.total == large.text_encoders > 32 * 4 * 10**7
