"""Stable Diffusion 3 and 3.5 as a model for the samplers."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderTiny, StableDiffusion3Pipeline
from torch import Tensor

from ..checks import check_integer
from .guidance import GuidedFlow
from .pipeline import FamilyFacts, image_size
from .prompts import Encoded
from .times import scheduler_sigmas, size_shift
from .weights import compute_dtype

MAX_T5_LENGTH = 512
"""Maximum number of T5 tokens of a prompt."""


class SD3Flow(GuidedFlow):
    """A StableDiffusion3Pipeline as `sampling.FlowModel`. See `PipelineModel` for how the pipeline is used.

    Latents are (16, H/8, W/8). They are float32 outside of the networks, in any dtype of the networks. With
    `Schedule("constant", 0)` the samplers follow the same path as `pipe(...)`.

    Args:
        pipe: Stable Diffusion 3 or 3.5, or a model derived from them, also without its T5 text encoder.
        height, width: size of images in pixels, multiples of 16; None is the size in the transformer's
            configuration, 1024.
        guidance_scale: scale of classifier-free guidance, v = v(negative) + scale (v(prompt) - v(negative)).
            A guided velocity takes two passes through the transformer; at 1 and below there is one pass and
            no guidance.
        negative_prompt: prompt that guidance leads away from.
        max_sequence_length: number of T5 tokens that prompts are cut or padded to, at most 512.
        gradient_checkpointing, reward_decoder: see `PipelineModel`.

    Raises:
        ValueError, TypeError: an argument is out of its range, the pipeline has no transformer or no VAE, or
            it is under group offloading.
    """

    facts = FamilyFacts(
        "Stable Diffusion 3 and 3.5",
        StableDiffusion3Pipeline,
        encoders=(
            "tokenizer",
            "tokenizer_2",
            "tokenizer_3",
            "text_encoder",
            "text_encoder_2",
            "text_encoder_3",
        ),
        optional=("tokenizer_3", "text_encoder_3"),
        unused=("feature_extractor", "image_encoder"),
        tiny=True,
    )

    def __init__(
        self,
        pipe: StableDiffusion3Pipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float = 7.0,
        negative_prompt: str = "",
        max_sequence_length: int = 256,
        gradient_checkpointing: bool | None = None,
        reward_decoder: AutoencoderTiny | None = None,
    ) -> None:
        self.check(pipe)
        self.check_guidance(guidance_scale, negative_prompt)
        check_integer("SD3Flow", "max_sequence_length", max_sequence_length, 1)
        if max_sequence_length > MAX_T5_LENGTH:
            raise ValueError(
                f"SD3Flow: max_sequence_length must be at most {MAX_T5_LENGTH}, got {max_sequence_length}"
            )
        self._t5_length = max_sequence_length
        config, factor = pipe.transformer.config, pipe.vae_scale_factor
        pixels = factor * config.patch_size
        most, default = config.pos_embed_max_size * pixels, config.sample_size * factor
        size = image_size("SD3Flow", height, width, (default, default), pixels, (most, most))
        super().__init__(
            pipe,
            (config.in_channels, *(side // factor for side in size)),
            pipe.tokenizer_max_length + max_sequence_length,
            gradient_checkpointing,
            weight=guidance_scale,
            negative_prompt=negative_prompt,
            reward_decoder=reward_decoder,
        )

    def encode_prompt(self, prompt: str) -> Encoded:
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            prompt,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._t5_length,
        )
        return {"tokens": tokens, "pooled": pooled}

    def placeholder_prompt(self) -> Encoded:
        config = self.pipe.transformer.config
        return {
            "tokens": torch.empty(1, self.prompt_length, config.joint_attention_dim),
            "pooled": torch.empty(1, config.pooled_projection_dim),
        }

    def sigmas(self, n: int) -> Tensor:
        scheduler, patch = self.pipe.scheduler, self.pipe.transformer.config.patch_size
        if not scheduler.config.get("use_dynamic_shifting"):
            return scheduler_sigmas(scheduler, n)
        tokens = self._shape[1] * self._shape[2] // patch**2
        return scheduler_sigmas(scheduler, n, size_shift(scheduler, tokens))

    def conditional_velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        transformer = self.pipe.transformer
        dtype = compute_dtype(transformer)
        prompt = self.prompts.batch(prompts)
        self.prepare()
        velocity: Tensor = transformer(
            hidden_states=x.to(dtype),
            # float32 for any dtype of the weights
            timestep=torch.full((len(x),), 1000 * sigma, dtype=torch.float32, device=x.device),
            encoder_hidden_states=prompt["tokens"].to(x.device, dtype),
            pooled_projections=prompt["pooled"].to(x.device, dtype),
            return_dict=False,
        )[0]
        return velocity.to(x.dtype)
