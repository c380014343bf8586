"""Loading of the model and the rewards named by the settings of a run."""

from dataclasses import replace
from typing import Any

import torch

from ..models import family_of, load_pipeline
from ..models.fine_tuned import check_denoiser, check_loras
from ..models.loading import family_at
from ..rewards import RewardSpec, WeightedSum
from ..rewards.frames import of_videos, takes_videos
from ..sampling import Reward
from .early_checks import check_early, video_reward_error
from .settings import ComputeOptions, Settings
from .videos import check_available


def check_settings(settings: Settings, compute: ComputeOptions) -> None:
    """Check settings that depend on each other, before anything is loaded.

    Raises:
        ValueError: the model, a reward or an option cannot be used with the other settings.
        ImportError: a package is missing.
    """
    check_early(settings, compute)
    if settings.denoiser:
        check_denoiser(settings.denoiser)
    check_loras(settings.lora)
    family = family_at(settings.model)
    if family.videos:
        check_available()
    family.adapter(settings.model, settings.one_step, settings.model_options)
    for reward in (*settings.rewards, *settings.held_out):
        if reward.videos and not family.videos:
            raise video_reward_error(reward.name, settings.model)


def load_model(settings: Settings, compute: ComputeOptions) -> Any:
    """Load the model and return the adapter that the method needs: a `FlowModel` or a `OneStepModel`.

    Raises:
        ModelError, ImportError: the model cannot be loaded.
    """
    pipe = load_pipeline(
        settings.model,
        dtype=getattr(torch, settings.dtype),
        device=compute.device,
        offload=compute.offload,
        denoiser=settings.denoiser,
        lora=settings.lora,
        variant=settings.variant,
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
            raise video_reward_error(spec.name, settings.model)
        return reward

    steering = WeightedSum({spec.name: (spec.weight, load(spec)) for spec in settings.rewards})
    return steering, {spec.name: load(spec) for spec in settings.held_out}
