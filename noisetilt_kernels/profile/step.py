"""Time of a guided step of a model, of which an operator takes a share: measured by the user, or counted."""

from dataclasses import dataclass

import torch

from .counting import Count
from .shapes import Shape, shape_of
from .timing import time_call

FLUX_LATENTS = (16, 128, 128)
"""Latents of FLUX.1 at 1024 x 1024 pixels."""
_FLUX_TEXT = 512
_LARGE_COPY = 2**28  # bytes


@dataclass(frozen=True)
class ModelStep:
    """Counts of a forward and a backward of a model for one sample.

    Attributes:
        model: the user's name for it.
        shape: shape of its latents, (C, H, W) or (1, C, F, H, W).
        flops: FLOPs of the matrix products, convolutions and attention.
        weight_bytes: bytes of the weights.
        parts: networks that are counted, as text.
    """

    model: str
    shape: Shape
    flops: int
    weight_bytes: int
    parts: str


@dataclass(frozen=True)
class StepTime:
    """Time of a step of a model.

    Attributes:
        seconds: measured by the user, or a lower bound by counts.
        measured: True if the user measured it.
        words: how the time was found.
    """

    seconds: float
    measured: bool
    words: str


def count_step(model: str, dtype: torch.dtype) -> ModelStep:
    """Count a forward and a backward of a model without its weights.

    Args:
        model: "flux" for the transformer of FLUX.1 at 1024 x 1024 pixels, by the configuration that diffusers
            has as its default; or a name, folder or hub id, see `load_pipeline`.
        dtype: dtype of the weights.

    Raises:
        ModelError: the model does not exist.
        ImportError: diffusers is not installed.
    """
    if model == "flux":
        return _count_flux(dtype)
    from ..models.memory import observe_step

    count = Count()
    shape, weight_bytes, steps = observe_step(model, count, dtype=dtype)
    sides = (1, *shape) if len(shape) == 4 else shape
    return ModelStep(
        model, shape_of(sides), count.flops // steps, weight_bytes, "denoiser and the VAE's decoder"
    )


def _count_flux(dtype: torch.dtype) -> ModelStep:
    from ..models.networks import network_class

    channels, height, width = FLUX_LATENTS
    tokens = height * width // 4
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            network = network_class("diffusers", "FluxTransformer2DModel")
            flux = network(guidance_embeds=True).requires_grad_(False)
            x = torch.zeros(1, tokens, 4 * channels, requires_grad=True)
            rest = {"timestep": torch.ones(1), "guidance": torch.ones(1), "img_ids": torch.zeros(tokens, 3)}
            text = {
                "encoder_hidden_states": torch.zeros(1, _FLUX_TEXT, 4096),
                "pooled_projections": torch.zeros(1, 768),
                "txt_ids": torch.zeros(_FLUX_TEXT, 3),
            }
            with Count() as count:
                velocity = flux(x, **rest, **text, return_dict=False)[0]
                torch.autograd.grad(velocity.sum(), x)
    finally:
        torch.set_default_dtype(before)
    weights = sum(weight.nbytes for weight in flux.parameters())
    return ModelStep("flux", shape_of(FLUX_LATENTS), count.flops, weights, "transformer of FLUX.1")


def step_of_user(milliseconds: float) -> StepTime:
    """Return a step whose time the user has measured."""
    return StepTime(milliseconds / 1e3, True, f"step: {milliseconds:g} ms, measured by you (--step-ms)")


def bound_of_step(
    step: ModelStep, batch: int, dtype: torch.dtype, device: torch.device, seconds: float = 0.2
) -> StepTime:
    """Return a lower bound of the time of a step: its counts, at the speeds that this device reaches.

    Args:
        step: counts for one sample.
        batch: number of samples.
        dtype: dtype of the weights.
        device: device of the model.
        seconds: duration of each measurement.
    """
    side = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    product = time_call(lambda: a @ b, seconds).median
    copied = torch.zeros(_LARGE_COPY, dtype=torch.uint8, device=device)
    copy = time_call(copied.clone, seconds).median
    flops_per_second, bytes_per_second = 2 * side**3 / product, 2 * _LARGE_COPY / copy
    flops, read = batch * step.flops, 2 * step.weight_bytes
    least = max(flops / flops_per_second, read / bytes_per_second)
    name = str(dtype).removeprefix("torch.")
    return StepTime(
        least,
        False,
        f"step: counted, not measured. A forward and a backward of {step.model} ({step.parts}) have "
        f"{_with_unit(flops)}FLOP, and read {_with_unit(read)}B of weights. A matrix product reaches "
        f"{_with_unit(flops_per_second)}FLOP/s here in {name}, and a copy {_with_unit(bytes_per_second)}B/s, "
        f"so this takes at least {least:.3g} s. A real step is slower: the shares are upper bounds. "
        "--step-ms takes a time that you have measured",
    )


def _with_unit(value: float) -> str:
    """Return a number with three digits and the prefix of its unit, such as "23.8 G"."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "
