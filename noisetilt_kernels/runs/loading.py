"""Loads what the settings of a run name."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from ..models import FluxOneStep, load_flux
from ..models.loading import IN_THE_BOX
from ..rewards import WeightedSum, load_reward
from ..rewards import load_rewards as load_weighted
from ..sampling import Reward
from .settings import Machine, Settings


def load_model(settings: Settings, machine: Machine) -> FluxOneStep:
    """The model, which serves as a flow as well as a one-step model."""
    with _without_bars() if settings.model in IN_THE_BOX else nullcontext():
        pipe = load_flux(
            settings.model,
            dtype=getattr(torch, settings.dtype),
            device=machine.device,
            offload=machine.offload,
            lora=settings.lora,
        )
    return FluxOneStep(pipe, height=settings.height, width=settings.width, guidance_scale=settings.guidance_scale)


def load_rewards(settings: Settings, machine: Machine) -> tuple[WeightedSum, dict[str, Reward]]:
    """The reward that steers, and those that are held out by name."""
    steering = load_weighted(settings.rewards, sources=settings.sources, device=machine.device)
    judges = {
        name: load_reward(name, source=settings.sources.get(name), device=machine.device) for name in settings.held_out
    }
    return steering, judges


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars for what is loaded in no time."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = diffusers.utils.logging, transformers.utils.logging
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()
