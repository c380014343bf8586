"""Loads what the settings of a run name."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from ..models import family_of, load_pipeline
from ..models.fine_tuned import check_peft, check_weights_exist
from ..models.loading import BUNDLED, family_at
from ..rewards import WeightedSum, load_reward
from ..rewards import load_rewards as load_weighted
from ..rewards.frames import of_videos, takes_videos
from ..rewards.registry import check_sources, has_weights, judges_videos, source_of
from ..sampling import Reward
from .settings import Machine, Settings
from .videos import check_available


def check(settings: Settings, machine: Machine) -> None:
    """Raises ValueError where something cannot be used as the settings say, ImportError where that needs more packages.

    Nothing is loaded.
    """
    if machine.offload and torch.device(machine.device).type == "cpu":
        raise ValueError("--offload is for GPUs: on the CPU everything is where it should be")
    if settings.dtype == "float16" and settings.method.needs_gradient:
        raise ValueError(
            "--dtype float16 rounds the small gradients of pixels to zero; bfloat16 and float32 do not"
        )
    for weights in filter(None, (settings.denoiser, settings.lora)):
        check_weights_exist(weights)
    if settings.lora:
        check_peft()
    check_sources(settings.sources)
    family = family_at(settings.model)
    if family.videos:
        check_available()
    family.adapter(settings.model, settings.one_step, settings.model_options)
    bundled = BUNDLED.get(settings.model)
    if bundled is not None and bundled.one_step != settings.one_step:
        command, other = ("sample", "digits-turbo") if settings.one_step else ("optimize", "digits")
        raise ValueError(f"{settings.model!r} is for `noisetilt {command}`; what this steers is {other!r}")
    for name in (*settings.rewards, *settings.held_out):
        if judges_videos(name) and not family.videos:
            raise _not_of_images(name, settings.model)


def load_model(settings: Settings, machine: Machine) -> Any:
    """The model, as the method needs it."""
    with _without_bars() if settings.model in BUNDLED else nullcontext():
        pipe = load_pipeline(
            settings.model,
            dtype=getattr(torch, settings.dtype),
            device=machine.device,
            offload=machine.offload,
            denoiser=settings.denoiser,
            lora=settings.lora,
        )
    adapter: Any = family_of(pipe).adapter(settings.model, settings.one_step, settings.model_options)
    return adapter(pipe, **settings.model_options)


def without_weights(settings: Settings, machine: Machine) -> WeightedSum | None:
    """The reward that steers, where it has no weights; else None."""
    if any(has_weights(name) for name in settings.rewards):
        return None
    return load_rewards(replace(settings, held_out=()), replace(machine, device="cpu"))[0]


def load_rewards(settings: Settings, machine: Machine) -> tuple[WeightedSum, dict[str, Reward]]:
    """The reward that steers, and those that are held out by name, for what the model makes."""
    videos = family_at(settings.model).videos

    def fit(name: str, reward: Reward) -> Reward:
        if videos:
            return of_videos(reward, machine.frames_at_once)
        if takes_videos(reward):
            raise _not_of_images(name, settings.model)
        return reward

    steering = load_weighted(settings.rewards, sources=settings.sources, device=machine.device)
    judges = {
        name: load_reward(name, source=source_of(name, settings.sources), device=machine.device)
        for name in settings.held_out
    }
    return (
        WeightedSum(
            {name: (weight, fit(name, reward)) for name, (weight, reward) in steering.rewards.items()}
        ),
        {name: fit(name, reward) for name, reward in judges.items()},
    )


def _not_of_images(reward: str, model: str) -> ValueError:
    return ValueError(f"the reward {reward!r} judges videos, and {model!r} makes images")


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars for what is loaded in no time."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = diffusers.utils.logging, transformers.utils.logging
    shown = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, before in zip(libraries, shown, strict=True):
            if before:
                library.enable_progress_bar()
