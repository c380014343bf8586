"""FLUX.1 as a model for the samplers."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderTiny, FluxPipeline
from torch import Tensor

from ..checks import check_integer, check_number
from ..functional import pack_latents, unpack_latents
from .guidance import GuidedFlow
from .pipeline import FamilyFacts, OneStepPipelineModel, image_size
from .prompts import Encoded
from .times import exact_timestep, sigmas_of_patches
from .weights import compute_dtype

MAX_PROMPT_LENGTH = 512
"""Maximum number of T5 tokens; FLUX.1 schnell was trained with 256."""


class FluxFlow(GuidedFlow):
    """A FluxPipeline as `sampling.FlowModel`. See `PipelineModel` for how the pipeline is used.

    Latents are unpacked, (16, H/8, W/8) for FLUX.1. They are float32 outside of the networks, in any dtype of
    the networks. With `Schedule("constant", 0)` the samplers follow the same path as `pipe(...)`.

    Args:
        pipe: FLUX.1 dev, schnell, or a model derived from them.
        height, width: size of images in pixels, multiples of 16; None is the size in the VAE's configuration,
            1024 for FLUX.1.
        guidance_scale: scale of embedded guidance, at least 0; models without it, such as schnell, ignore it.
        true_cfg_scale: scale of classifier-free guidance, as in the pipeline: v = v(negative) + scale
            (v(prompt) - v(negative)). A guided velocity takes two passes through the transformer; at 1 and
            below there is one pass and no guidance.
        negative_prompt: prompt that classifier-free guidance leads away from.
        max_sequence_length: number of T5 tokens that prompts are cut or padded to, at most 512; None is 512,
            or 256 for models without embedded guidance, or the tokenizer's maximum if that is less.
        gradient_checkpointing, reward_decoder: see `PipelineModel`.

    Raises:
        ValueError, TypeError: an argument is out of its range, the pipeline has no transformer or no VAE, or
            it is under group offloading.
    """

    facts = FamilyFacts(
        "FLUX",
        FluxPipeline,
        encoders=("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"),
        packing=4,
        tiny=True,
    )

    def __init__(
        self,
        pipe: FluxPipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float = 3.5,
        true_cfg_scale: float = 1.0,
        negative_prompt: str = "",
        max_sequence_length: int | None = None,
        gradient_checkpointing: bool | None = None,
        reward_decoder: AutoencoderTiny | None = None,
    ) -> None:
        name = type(self).__name__
        self.check(pipe)
        check_number(name, "guidance_scale", guidance_scale, 0)
        self.check_guidance(true_cfg_scale, negative_prompt, "true_cfg_scale")
        self._guidance_scale = float(guidance_scale)
        length = _prompt_length(name, pipe, max_sequence_length)
        factor = pipe.vae_scale_factor
        # the pipeline's default, 128 latents, ignores the model; a tiny autoencoder does not name a size
        default = pipe.vae.config.get("sample_size") or factor * pipe.default_sample_size
        size = image_size(name, height, width, (default, default), 2 * factor)
        shape = (pipe.transformer.config.in_channels // 4, *(side // factor for side in size))
        super().__init__(
            pipe,
            shape,
            length,
            gradient_checkpointing,
            weight=true_cfg_scale,
            negative_prompt=negative_prompt,
            reward_decoder=reward_decoder,
        )

    def encode_prompt(self, prompt: str) -> Encoded:
        tokens, pooled, _ = self.pipe.encode_prompt(
            prompt, device=self.device, max_sequence_length=self.prompt_length
        )
        return {"tokens": tokens, "pooled": pooled}

    def placeholder_prompt(self) -> Encoded:
        config = self.pipe.transformer.config
        return {
            "tokens": torch.empty(1, self.prompt_length, config.joint_attention_dim),
            "pooled": torch.empty(1, config.pooled_projection_dim),
        }

    def sigmas(self, n: int) -> Tensor:
        return sigmas_of_patches(self.pipe.scheduler, n, self._shape)

    def conditional_velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        transformer = self.pipe.transformer
        dtype, (height, width) = compute_dtype(transformer), self._shape[1:]
        prompt = self.prompts.batch(prompts)
        self.prepare()
        time = torch.full((len(x),), sigma, dtype=torch.float32, device=x.device)
        # float32: the pipeline's bfloat16 is exact only for integers up to 256; text positions are zero
        positions = self.pipe._prepare_latent_image_ids(
            len(x), height // 2, width // 2, x.device, torch.float32
        )
        with exact_timestep(transformer.time_text_embed.time_proj, 1000 * time):
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

    Arguments and errors are the same as for `FluxFlow`.
    """

    def denoised(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        self.check_latents("denoised", x, prompts)
        return x - self.velocity(x, 1.0, prompts)


def _prompt_length(function: str, pipe: Any, length: int | None) -> int:
    """Number of T5 tokens of a prompt; raises ValueError or TypeError if `length` is out of range."""
    if length is None:
        length = MAX_PROMPT_LENGTH if pipe.transformer.config.guidance_embeds else MAX_PROMPT_LENGTH // 2
        return length if pipe.tokenizer_2 is None else min(length, pipe.tokenizer_2.model_max_length)
    check_integer(function, "max_sequence_length", length, 1)
    if length > MAX_PROMPT_LENGTH:
        raise ValueError(f"{function}: max_sequence_length must be at most {MAX_PROMPT_LENGTH}, got {length}")
    return length
