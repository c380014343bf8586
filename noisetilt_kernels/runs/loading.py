"""Loading of the model and the rewards named by the settings of a run."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from ..models import family_of, load_pipeline
from ..models.fine_tuned import check_peft, check_weights_exist
from ..models.loading import BUNDLED, family_at
from ..rewards import RewardSpec, WeightedSum
from ..rewards.frames import of_videos, takes_videos
from ..sampling import Reward
from .settings import ComputeOptions, Settings, check_limits
from .videos import check_available


def check_settings(settings: Settings, compute: ComputeOptions) -> None:
    """Check settings that depend on each other, before anything is loaded.

    Raises:
        ValueError: the model, a reward or an option cannot be used with the other settings.
        ImportError: a package is missing.
    """
    check_limits(settings, compute)
    if compute.offload and torch.device(compute.device).type == "cpu":
        raise ValueError("--offload is for GPUs, got a run on the CPU; leave it out")
    if settings.dtype == "float16" and settings.method.needs_gradient:
        raise ValueError(
            "--dtype float16 rounds the small gradients of pixels to zero; use bfloat16 or float32"
        )
    for weights in filter(None, (settings.denoiser, settings.lora)):
        check_weights_exist(weights)
    if settings.lora:
        check_peft()
    for reward in settings.rewards:
        reward.check_steers()
    for reward in (*settings.rewards, *settings.held_out):
        reward.check_prompts(settings.prompts)
    family = family_at(settings.model)
    if family.videos:
        check_available()
    family.adapter(settings.model, settings.one_step, settings.model_options)
    bundled = BUNDLED.get(settings.model)
    if bundled is not None and bundled.one_step != settings.one_step:
        command, other = ("sample", "digits-turbo") if settings.one_step else ("optimize", "digits")
        raise ValueError(f"{settings.model!r} is for `noisetilt {command}`; use {other!r} here")
    for reward in (*settings.rewards, *settings.held_out):
        if reward.videos and not family.videos:
            raise _video_reward_error(reward.name, settings.model)


def load_model(settings: Settings, compute: ComputeOptions) -> Any:
    """Load the model and return the adapter that the method needs: a `FlowModel` or a `OneStepModel`.

    Raises:
        ModelError, ImportError: the model cannot be loaded.
    """
    with _progress_bars_hidden() if settings.model in BUNDLED else nullcontext():
        pipe = load_pipeline(
            settings.model,
            dtype=getattr(torch, settings.dtype),
            device=compute.device,
            offload=compute.offload,
            denoiser=settings.denoiser,
            lora=settings.lora,
        )
    adapter: Any = family_of(pipe).adapter(settings.model, settings.one_step, settings.model_options)
    return adapter(pipe, **settings.model_options)


def load_weightless_reward(settings: Settings, compute: ComputeOptions) -> WeightedSum | None:
    """Return the steering reward if none of its parts has weights to load, else None."""
    if any(reward.has_weights for reward in settings.rewards):
        return None
    return load_rewards(replace(settings, held_out=()), replace(compute, device="cpu"))[0]


def load_rewards(settings: Settings, compute: ComputeOptions) -> tuple[WeightedSum, dict[str, Reward]]:
    """Load the steering reward and the held-out rewards by name, for the images or videos of the model.

    Raises:
        ValueError: a reward of videos is to judge images.
        RewardError, ImportError: a reward cannot be loaded.
    """
    videos = family_at(settings.model).videos

    def load(spec: RewardSpec) -> Reward:
        reward = spec.load(compute.device)
        if videos:
            return of_videos(reward, compute.frames_at_once)
        if takes_videos(reward):
            raise _video_reward_error(spec.name, settings.model)
        return reward

    steering = WeightedSum({spec.name: (spec.weight, load(spec)) for spec in settings.rewards})
    return steering, {spec.name: load(spec) for spec in settings.held_out}


def _video_reward_error(reward: str, model: str) -> ValueError:
    return ValueError(f"the reward {reward!r} judges videos, but {model!r} makes images")


@contextmanager
def _progress_bars_hidden() -> Iterator[None]:
    """Hide the progress bars of diffusers and transformers; bundled models load immediately."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = diffusers.utils.logging, transformers.utils.logging
    enabled = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, before in zip(libraries, enabled, strict=True):
            if before:
                library.enable_progress_bar()
