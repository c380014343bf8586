"""What a run will do, before it does it."""

import math
from pathlib import Path

import torch

from ..models.memory import plan_memory
from . import loading
from .settings import Machine, Settings


def describe(settings: Settings, machine: Machine, out: Path) -> str:
    """The plan as text: shapes, numbers of images and function evaluations, memory.

    Raises:
        ModelError, ValueError: there is no such model, or it has no images of that size, or the operator does not take
            its latents.
    """
    reward = loading.without_weights(settings, machine)
    memory = plan_memory(
        settings.model,
        dtype=getattr(torch, settings.dtype),
        micro_batch=machine.micro_batch,
        offload=machine.offload,
        gradient=settings.method.needs_gradient,
        one_step=settings.one_step,
        reward=reward,
        **settings.model_options,
    )
    settings.method.check_shape(memory.shape)
    values = " x ".join(map(str, memory.shape))
    count = len(settings.every_prompt)
    rewards = " ".join(f"{weight:+g} {name}" for name, weight in settings.rewards.items())
    held_out = f"; held out: {', '.join(settings.held_out)}" if settings.held_out else ""
    *frames, height, width = memory.pixels[1:]
    made = f"of {height} x {width}" if not frames else f"of {frames[0]} frames of {height} x {width}"
    at_once = ""
    if frames:
        seen = min(machine.frames_at_once, frames[0])
        pixels = 4 * 3 * machine.micro_batch * seen * height * width
        at_once = f"; {seen} of {frames[0]} frames at once ({size(pixels)} of pixels)"
    prompts = f"{len(settings.prompts)} prompt{'s' if len(settings.prompts) > 1 else ''}"
    beside = "; and the reward's own" if reward is None else ""
    rows = {
        "model": f"{settings.model}, {settings.dtype} on {machine.device}",
        "videos" if frames else "images": f"{count} {made}: {settings.particles} of each of "
        f"{prompts}; latents {values} (N = {math.prod(memory.shape):,})",
        "method": str(settings.method),
        "reward": rewards + held_out + at_once,
        "NFE": f"{settings.method.nfe} {'a video' if frames else 'an image'}, {settings.nfe:,} in all",
        "memory": f"{size(memory.total)}: denoiser {size(memory.denoiser)}, VAE {size(memory.vae)}, "
        f"text encoders {size(memory.text_encoders)}{' (offloaded)' if machine.offload else ''}, "
        f"activations of {machine.micro_batch} at once {size(memory.activations)}{beside}",
        "to": str(out),
    }
    return "\n".join(f"{name:<8}{text}" for name, text in rows.items())


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
