"""FLUX of diffusers as a model for the samplers."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor

from ..checks import check_integer, check_number
from ..functional import pack_latents, unpack_latents
from .offload import keep_until_backward
from .pipeline import FlowPipelineModel, OneStepPipelineModel, check_sides
from .prompts import Encoded
from .times import exact_time, shifted_sigmas

LONGEST_PROMPT = 512
"""Tokens of T5 that FLUX takes; schnell was trained with half of them."""


class FluxFlow(FlowPipelineModel):
    """A FluxPipeline as `sampling.FlowModel`; what it does with the pipeline is as of `PipelineModel`.

    Latents are unpacked, and float32 outside of the networks whatever dtype those are in. With
    `Schedule("constant", 0)` the samplers walk the path of `pipe(...)`.

    Args:
        pipe: FLUX.1 dev, schnell, or made of them.
        height, width: of images, in pixels; None is the size that the VAE was made for, of FLUX.1 1024.
        guidance_scale: for models with embedded guidance, such as dev; schnell has none, and ignores it.
        max_sequence_length: tokens of T5 that prompts are cut or padded to; None is 512, for models without embedded
            guidance 256, or what the tokenizer takes, if that is less.
        gradient_checkpointing: as of `PipelineModel`.

    Raises:
        ValueError, TypeError: an argument out of its range, or a pipeline without transformer or VAE or under group
            offloading.
    """

    pipeline = FluxPipeline
    encoder_names = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")

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
        self.check(pipe)
        check_number(name, "guidance_scale", guidance_scale, 0)
        self._guidance_scale = float(guidance_scale)
        length = _prompt_length(name, pipe, max_sequence_length)
        default = pipe.vae.config.sample_size  # the pipeline's own default is 128 latents whatever the model
        sides = {
            "height": default if height is None else height,
            "width": default if width is None else width,
        }
        check_sides(name, sides, 2 * pipe.vae_scale_factor)
        shape = (
            pipe.transformer.config.in_channels // 4,
            *(side // pipe.vae_scale_factor for side in sides.values()),
        )
        super().__init__(pipe, shape, length, gradient_checkpointing)

    def encode_prompt(self, prompt: str) -> Encoded:
        tokens, pooled, _ = self.pipe.encode_prompt(
            prompt, device=self.device, max_sequence_length=self.prompt_length
        )
        return {"tokens": tokens, "pooled": pooled}

    def blank_prompt(self) -> Encoded:
        config = self.pipe.transformer.config
        return {
            "tokens": torch.empty(1, self.prompt_length, config.joint_attention_dim),
            "pooled": torch.empty(1, config.pooled_projection_dim),
        }

    def sigmas(self, n: int) -> Tensor:
        return shifted_sigmas(self.pipe.scheduler, n, self._shape[1] * self._shape[2] // 4)

    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        self.check_latents("velocity", x, prompts)
        transformer = self.pipe.transformer
        dtype, (height, width) = transformer.dtype, self._shape[1:]
        prompt = self.prompts.batch(prompts)
        keep_until_backward(self.pipe)
        time = torch.full((len(x),), sigma, dtype=torch.float32, device=x.device)
        # float32 positions: the pipeline's bfloat16 has integers up to 256 only; those of text are all zero
        positions = self.pipe._prepare_latent_image_ids(
            len(x), height // 2, width // 2, x.device, torch.float32
        )
        with exact_time(transformer, 1000 * time):
            tokens: Tensor = transformer(
                hidden_states=pack_latents(x).to(dtype),
                timestep=time,
                guidance=torch.full_like(time, self._guidance_scale)
                if transformer.config.guidance_embeds
                else None,
                pooled_projections=prompt["pooled"].to(x.device, dtype),
                encoder_hidden_states=prompt["tokens"].to(x.device, dtype),
                txt_ids=positions.new_zeros(prompt["tokens"].shape[1], 3),
                img_ids=positions,
                return_dict=False,
            )[0]
        return unpack_latents(tokens.to(x.dtype), height, width)


class FluxOneStep(FluxFlow, OneStepPipelineModel):
    """A FluxPipeline as `sampling.OneStepModel`, for models distilled to one step such as FLUX.1 schnell.

    Args, and what is raised, are those of `FluxFlow`, which it is as well.
    """

    def denoised(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        self.check_latents("denoised", x, prompts)
        return x - self.velocity(x, 1.0, prompts)


def _prompt_length(function: str, pipe: Any, length: int | None) -> int:
    if length is None:
        length = LONGEST_PROMPT if pipe.transformer.config.guidance_embeds else LONGEST_PROMPT // 2
        return length if pipe.tokenizer_2 is None else min(length, pipe.tokenizer_2.model_max_length)
    check_integer(function, "max_sequence_length", length, 1)
    if length > LONGEST_PROMPT:
        raise ValueError(f"{function}: max_sequence_length must be at most {LONGEST_PROMPT}, got {length}")
    return length
