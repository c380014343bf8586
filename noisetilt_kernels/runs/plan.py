"""Plan of a run: sizes, number of function evaluations and memory, before any work."""

import math
from pathlib import Path

import torch

from ..models.memory import plan_memory
from . import loading
from .settings import ComputeOptions, Settings


def describe(settings: Settings, compute: ComputeOptions, out: Path) -> str:
    """Return the plan as text: shapes, numbers of images and of function evaluations, memory.

    Raises:
        ModelError: the model does not exist.
        ValueError: the model has no images of that size, or the operator does not take its latents.
    """
    weightless_reward = loading.load_weightless_reward(settings, compute)
    # a micro-batch is never larger than the run
    micro_batch = min(compute.micro_batch, settings.count * settings.method.entries)
    memory = plan_memory(
        settings.model,
        dtype=getattr(torch, settings.dtype),
        micro_batch=micro_batch,
        offload=compute.offload,
        gradient=settings.method.needs_gradient,
        one_step=settings.one_step,
        reward=weightless_reward,
        **settings.model_options,
    )
    settings.method.check_shape(memory.shape)
    shape = " x ".join(map(str, memory.shape))
    rewards = " ".join(f"{reward.weight:+g} {reward.name}" for reward in settings.rewards)
    held_out = (
        f"; held out: {', '.join(reward.name for reward in settings.held_out)}" if settings.held_out else ""
    )
    *frames, height, width = memory.pixels[1:]
    extent = f"{height} x {width}" if not frames else f"{frames[0]} frames of {height} x {width}"
    at_once = ""
    if frames:
        count_at_once = min(compute.frames_at_once, frames[0])
        pixels = 4 * 3 * micro_batch * count_at_once * height * width
        at_once = f"; {count_at_once} of {frames[0]} frames at once ({format_bytes(pixels)} of pixels)"
    prompts = f"{len(settings.prompts)} prompt{'s' if len(settings.prompts) > 1 else ''}"
    reward_memory = "; plus the reward model" if weightless_reward is None else ""
    offloaded = " (offloaded)" if compute.offload else ""
    rows = {
        "model": f"{settings.model}, {settings.dtype} on {compute.device}",
        "videos" if frames else "images": f"{settings.count:,} of {extent}: "
        f"{settings.particles:,} for each of {prompts}; latents {shape} (N = {math.prod(memory.shape):,})",
        "method": str(settings.method),
        "reward": rewards + held_out + at_once,
        "NFE": f"{settings.method.nfe} per {'video' if frames else 'image'}, {settings.nfe:,} in total",
        "memory": f"{format_bytes(memory.total)}: denoiser {format_bytes(memory.denoiser)}, "
        f"VAE {format_bytes(memory.vae)}, "
        f"text encoders {format_bytes(memory.text_encoders)}{offloaded}, "
        f"activations of {micro_batch} at once {format_bytes(memory.activations)}{reward_memory}",
        "folder": str(out),
    }
    return "\n".join(f"{name:<8}{text}" for name, text in rows.items())


def format_bytes(count: float) -> str:
    """Return a number of bytes with a readable unit, such as "1.5 MB"."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
