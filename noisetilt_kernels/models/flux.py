"""FLUX of diffusers as a model for the samplers."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor

from ..api import pack_latents, unpack_latents
from ..sampling.checks import check_integer, check_number, prompt_list
from .offload import check_offload, execution_device, keep_until_backward
from .prompts import PromptCache
from .times import exact_time, pipeline_sigmas

LONGEST_PROMPT = 512
"""Tokens of T5 that FLUX takes; schnell was trained with half of them."""

LARGE = 100_000_000
"""Weights of a transformer whose activations are worth the time of computing them twice."""


class FluxFlow:
    """A FluxPipeline as `sampling.FlowModel`: its own models, scheduler and prompt encoding, with gradients.

    Latents are unpacked, and float32 outside of the models whatever dtype those are in. With `Schedule("constant", 0)`
    the samplers walk the path of `pipe(...)`.

    The pipeline is used, not copied: its models lose their parameters' gradients and stay in eval mode, and
    transformer and VAE of large ones recompute activations in the backward. VAE tiling and slicing, LoRA and
    quantisation are as set in the pipeline. Both `enable_model_cpu_offload()` and `enable_sequential_cpu_offload()`
    work, the second much slower; with the first, transformer and VAE stay on the device together until a new prompt is
    to be encoded.

    Args:
        pipe: FLUX.1 dev, schnell, or made of them.
        height, width: of images, in pixels; None is the size that the VAE was made for, of FLUX.1 1024.
        guidance_scale: for models with embedded guidance, such as dev; schnell has none, and ignores it.
        max_sequence_length: tokens of T5 that prompts are cut or padded to; None is 512, for models without embedded
            guidance 256, or what the tokenizer takes, if that is less.
        gradient_checkpointing: recompute activations block by block in the backward, for a third more time and a
            fraction of the memory; None does so for transformers of 100 million weights and more.

    Raises:
        ValueError, TypeError: an argument out of its range, or a pipeline without transformer or VAE or under group
            offloading.
    """

    def __init__(
        self,
        pipe: FluxPipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float = 3.5,
        max_sequence_length: int | None = None,
        gradient_checkpointing: bool | None = None,
    ) -> None:
        name = type(self).__name__
        if not isinstance(pipe, FluxPipeline):
            raise TypeError(f"{name}: pipe must be a FluxPipeline of diffusers, got {type(pipe).__name__}")
        for model in ("transformer", "vae"):
            if getattr(pipe, model) is None:
                raise ValueError(f"{name}: pipe must have a transformer and a VAE, its {model} is None")
        check_offload(name, pipe)
        check_number(name, "guidance_scale", guidance_scale, 0)
        self.pipe = pipe
        self._guidance_scale = float(guidance_scale)
        self.prompts = PromptCache(name, pipe, _prompt_length(name, pipe, max_sequence_length))
        default = pipe.vae.config.sample_size  # the pipeline's own default is 128 latents whatever the model
        sides = {"height": default if height is None else height, "width": default if width is None else width}
        for side, pixels in sides.items():
            _check_side(name, side, pixels, 2 * pipe.vae_scale_factor)
        self._shape = (
            pipe.transformer.config.in_channels // 4,
            *(pixels // pipe.vae_scale_factor for pixels in sides.values()),
        )
        for component in pipe.components.values():
            if isinstance(component, torch.nn.Module):
                component.eval().requires_grad_(False)
        if gradient_checkpointing is None:
            gradient_checkpointing = pipe.transformer.num_parameters() >= LARGE
        for network in (pipe.transformer, pipe.vae):
            if gradient_checkpointing and network._supports_gradient_checkpointing:
                network.enable_gradient_checkpointing()
            else:
                network.disable_gradient_checkpointing()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one latent, unpacked: (C, H, W), (16, 128, 128) for images of 1024 x 1024."""
        return self._shape

    @property
    def device(self) -> torch.device:
        """Where the transformer computes."""
        return execution_device(self.pipe.transformer)

    def encode(self, prompts: str | Sequence[str]) -> None:
        """Encode prompts ahead; otherwise each is encoded when it is first needed.

        Afterwards the text encoders, 9.5 GB with T5-XXL, are not needed for them any more, and
        `pipe.text_encoder = pipe.text_encoder_2 = None` frees their memory.

        Raises:
            ValueError, TypeError: the pipeline has no text encoders; prompts are not strings.
        """
        self.prompts.add(prompt_list(f"{type(self).__name__}.encode", prompts))

    def sigmas(self, n: int) -> Tensor:
        """The n + 1 times that the pipeline has for n steps at this size, float32, on the CPU."""
        return pipeline_sigmas(self.pipe.scheduler, n, self._shape[1] * self._shape[2] // 4)

    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        """v(x, sigma): the transformer's output for latents (B, *shape), in their dtype; differentiable.

        Raises:
            ValueError: x is not (B, *shape) with B prompts, or a new prompt finds no text encoders.
        """
        if x.shape != (len(prompts), *self._shape):
            raise ValueError(
                f"{type(self).__name__}.velocity: x must be {(len(prompts), *self._shape)}, one latent for each "
                f"prompt, got {tuple(x.shape)}"
            )
        transformer = self.pipe.transformer
        dtype, (height, width) = transformer.dtype, self._shape[1:]
        prompt = self.prompts.batch(prompts, dtype)
        keep_until_backward(self.pipe)
        time = torch.full((len(x),), sigma, dtype=torch.float32, device=x.device)
        # float32 positions: the pipeline's bfloat16 has integers up to 256 only
        positions = self.pipe._prepare_latent_image_ids(len(x), height // 2, width // 2, x.device, torch.float32)
        with exact_time(transformer, 1000 * time):
            tokens: Tensor = transformer(
                hidden_states=pack_latents(x).to(dtype),
                timestep=time,
                guidance=torch.full_like(time, self._guidance_scale) if transformer.config.guidance_embeds else None,
                pooled_projections=prompt.pooled,
                encoder_hidden_states=prompt.tokens,
                txt_ids=prompt.ids,
                img_ids=positions,
                return_dict=False,
            )[0]
        return unpack_latents(tokens.to(x.dtype), height, width)

    def decode(self, x0: Tensor) -> Tensor:
        """Images (B, 3, 8H, 8W) of latents (B, *shape), in their dtype, in [0, 1]; differentiable.

        What the VAE makes is clamped to [0, 1], but its gradient is passed as if it were not: a pixel beyond can so be
        led back, where the gradient of a clamp is zero.
        """
        vae = self.pipe.vae
        keep_until_backward(self.pipe)
        latents = x0 / vae.config.scaling_factor + vae.config.shift_factor
        images: Tensor = vae.decode(latents.to(execution_device(vae), vae.dtype), return_dict=False)[0]
        images = images.to(x0) / 2 + 0.5
        # the difference is exactly zero, so that the sum stays within [0, 1]
        return images.clamp(0, 1).detach() + (images - images.detach())


class FluxOneStep(FluxFlow):
    """A FluxPipeline as `sampling.OneStepModel`, for models distilled to one step such as FLUX.1 schnell.

    Args, and what is raised, are those of `FluxFlow`, which it is as well.
    """

    def generate(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (B, 3, 8H, 8W) in [0, 1] of one step from noise (B, *shape) to x_0 = x - v(x, 1); differentiable."""
        return self.decode(x - self.velocity(x, 1.0, prompts))


def _prompt_length(function: str, pipe: FluxPipeline, length: int | None) -> int:
    if length is None:
        length = LONGEST_PROMPT if pipe.transformer.config.guidance_embeds else LONGEST_PROMPT // 2
        return length if pipe.tokenizer_2 is None else min(length, pipe.tokenizer_2.model_max_length)
    check_integer(function, "max_sequence_length", length, 1)
    if length > LONGEST_PROMPT:
        raise ValueError(f"{function}: max_sequence_length must be at most {LONGEST_PROMPT}, got {length}")
    return length


def _check_side(function: str, name: str, pixels: Any, multiple: int) -> None:
    check_integer(function, name, pixels, 1)
    if pixels % multiple:
        below = pixels // multiple * multiple
        nearest = f"{below} and {below + multiple} are" if below else f"{multiple} is"
        raise ValueError(f"{function}: {name} must be a multiple of {multiple}, got {pixels}; {nearest} nearest")
