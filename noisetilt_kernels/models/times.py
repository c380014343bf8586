"""Times of diffusers pipelines, and exact timesteps for transformers."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from torch import Tensor

_START_TOLERANCE = 1e-3
"""Largest distance of a scheduler's first time from 1 that still means pure noise.

It is smaller than the distance between the times that models are trained on.
"""


def size_shift(scheduler: Any, tokens: int) -> float:
    """Return the shift of times for an image of this number of tokens: linear, by the configuration."""
    config = scheduler.config
    shift: float = calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    return shift


def shifted_sigmas(scheduler: Any, n: int, shift: float) -> Tensor:
    """Return the n + 1 times, float32, for pipelines that shift evenly spaced times from 1 to 1 / n.

    The scheduler is left unchanged.

    Args:
        scheduler: scheduler of the pipeline.
        n: number of steps.
        shift: shift of the times, used by schedulers with dynamic shifting only.
    """
    scheduler, config = copy.copy(scheduler), scheduler.config  # shallow: set_timesteps replaces tensors
    uniform: Any = None if config.get("use_flow_sigmas", False) else np.linspace(1.0, 1 / n, n)
    retrieve_timesteps(scheduler, n, sigmas=uniform, mu=shift)
    return _flow_sigmas(scheduler)


def sigmas_of_patches(scheduler: Any, n: int, shape: tuple[int, ...]) -> Tensor:
    """Return `shifted_sigmas` for a latent (C, H, W) that the transformer reads in patches of 2x2."""
    return shifted_sigmas(scheduler, n, size_shift(scheduler, shape[1] * shape[2] // 4))


def scheduler_sigmas(scheduler: Any, n: int, shift: float | None = None) -> Tensor:
    """Return the scheduler's default n + 1 times for n steps, float32. The scheduler is left unchanged.

    Args:
        scheduler: scheduler of the pipeline.
        n: number of steps.
        shift: shift of the times, for a scheduler with dynamic shifting; None for others.
    """
    scheduler = copy.copy(scheduler)
    scheduler.set_timesteps(n, **({} if shift is None else {"mu": shift}))
    return _flow_sigmas(scheduler)


def _flow_sigmas(scheduler: Any) -> Tensor:
    """Return the times that were set in a scheduler; raise ValueError unless they are times of a flow."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or sigmas[0] > 1 + _START_TOLERANCE:
        raise ValueError(
            "the pipeline's scheduler must be configured for the times of a flow, from 1 to 0, got "
            f"{type(scheduler).__name__} with other times"
        )
    return snap_start(sigmas)


def snap_start(sigmas: Tensor) -> Tensor:
    """Return the times with the first one set to exactly 1, pure noise, if it is nearly 1.

    Shifting maps 1 to itself, but in float32 not always exactly. UniPC avoids 1 since it takes logarithms.
    """
    start = sigmas[:1]
    return torch.cat([torch.where((start - 1).abs() <= _START_TOLERANCE, 1.0, start), sigmas[1:]])


@contextmanager
def exact_timestep(time_proj: torch.nn.Module, timestep: Tensor) -> Iterator[None]:
    """Make a transformer embed timesteps (B,) without rounding, within the block.

    The transformers of FLUX and Qwen-Image cast timesteps to the dtype of their weights before they compute
    their sines in float32. Neighbouring bfloat16 values near 1000 are 4 apart. The first of 50 steps of FLUX
    has the length 6.4, and the sines have a period of 6.3. The velocity would then belong to another time
    than the sampler's step.

    Args:
        time_proj: module of the transformer that computes sines. Its first call is for the timestep; a second
            one may be for the guidance scale.
        timestep: timesteps as the module gets them, float32.
    """

    def replace(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        handle.remove()
        return (timestep,)

    handle = time_proj.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()
