"""Times as pipelines of diffusers make them, and how the transformer of FLUX is told the time."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from torch import Tensor

_NEAR = 1e-3
"""How far from 1 a scheduler's first time may be and still mean noise: less than models are trained to tell apart."""


def shifted_sigmas(scheduler: Any, n: int, tokens: int) -> Tensor:
    """The n + 1 times that pipelines with a shift by size have for n steps and images of so many tokens, float32.

    The scheduler is left as it is.
    """
    scheduler = copy.copy(scheduler)  # shallow, as set_timesteps puts new tensors in the place of old ones
    config = scheduler.config
    shift = calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    uniform: Any = None if config.get("use_flow_sigmas", False) else np.linspace(1.0, 1 / n, n)
    retrieve_timesteps(scheduler, n, sigmas=uniform, mu=shift)
    return _of_flow(scheduler)


def fixed_sigmas(scheduler: Any, n: int) -> Tensor:
    """The n + 1 times that pipelines have that leave them to their scheduler, float32; it is left as it is."""
    scheduler = copy.copy(scheduler)
    scheduler.set_timesteps(n)
    return _of_flow(scheduler)


def _of_flow(scheduler: Any) -> Tensor:
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or sigmas[0] > 1 + _NEAR:
        raise ValueError(
            f"the pipeline's scheduler must have the times of a flow, from 1 to 0, which {type(scheduler).__name__} "
            "has not as it is configured"
        )
    return from_one(sigmas)


def from_one(sigmas: Tensor) -> Tensor:
    """The times, with a first one that is 1 or nearly so made exactly 1: pure noise is where a trajectory starts.

    Shifting maps 1 to itself, in float32 not always exactly, and UniPC stays clear of it since it takes logarithms.
    """
    start = sigmas[:1]
    return torch.cat([torch.where((start - 1).abs() <= _NEAR, 1.0, start), sigmas[1:]])


@contextmanager
def exact_time(transformer: FluxTransformer2DModel, timestep: Tensor) -> Iterator[None]:
    """Within the block the transformer's embedding of time sees these timesteps (B,), from 0 to 1000, as they are.

    FluxTransformer2DModel casts its times to the dtype of its weights before it makes sines of them, in float32. In
    bfloat16 neighbours lie 4 apart near 1000, while 50 steps of FLUX start with steps of 6.4 and sines go round every
    6.3: the velocity would be that of another time than the one for which the sampler computes score, noise and step.
    """

    def replace(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return timestep, *arguments[1:]

    handle = transformer.time_text_embed.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()
