"""Qwen-Image as a model for the samplers."""

from collections.abc import Sequence

import torch
from diffusers import QwenImagePipeline
from torch import Tensor

from ..functional import pack_latents, unpack_latents
from .causal_vae import decode_causal
from .patched import PatchedFlow
from .pipeline import FamilyFacts
from .times import exact_timestep, sigmas_of_patches
from .weights import compute_dtype


class QwenImageFlow(PatchedFlow):
    """A QwenImagePipeline as `sampling.FlowModel`. See `PipelineModel` for how the pipeline is used.

    Latents are unpacked, (16, H/8, W/8). They are float32 outside of the networks, in any dtype of the
    networks. With `Schedule("constant", 0)` the samplers follow the same path as `pipe(...)` with the same
    negative prompt. Tiling and slicing of the VAE are ignored.

    In a batch, shorter prompts are padded and masked: a particle's velocity depends on the other particles by
    rounding only.

    Args:
        pipe: Qwen-Image, or a model derived from it for text alone.
        height, width: size of images in pixels, multiples of 16; None is 1024.
        true_cfg_scale: scale of classifier-free guidance, v = v(negative) + scale (v(prompt) - v(negative)).
            Each 2x2 patch of v is then scaled to the norm that it has in v(prompt). A guided velocity takes
            two passes through the transformer; at 1 and below there is one pass and no guidance.
        negative_prompt: prompt that guidance leads away from; a space means no negative prompt.
        gradient_checkpointing: see `PipelineModel`.

    Raises:
        ValueError, TypeError: an argument is out of its range, the pipeline has no transformer or no VAE, or
            it is under group offloading.
    """

    facts = FamilyFacts("Qwen-Image", QwenImagePipeline, packing=4)

    def __init__(
        self,
        pipe: QwenImagePipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        true_cfg_scale: float = 4.0,
        negative_prompt: str = " ",
        gradient_checkpointing: bool | None = None,
    ) -> None:
        self.check(pipe)
        self.check_guidance(true_cfg_scale, negative_prompt, "true_cfg_scale")
        super().__init__(
            pipe,
            height,
            width,
            gradient_checkpointing,
            weight=true_cfg_scale,
            negative_prompt=negative_prompt,
        )

    def sigmas(self, n: int) -> Tensor:
        return sigmas_of_patches(self.pipe.scheduler, n, self._shape)

    def conditional_velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        transformer, (height, width) = self.pipe.transformer, self._shape[1:]
        dtype = compute_dtype(transformer)
        tokens, mask = self.prompts.padded(prompts)
        self.prepare()
        time = torch.full((len(x),), sigma, dtype=torch.float32, device=x.device)
        with exact_timestep(transformer.time_text_embed.time_proj, time):
            velocity: Tensor = transformer(
                hidden_states=pack_latents(x).to(dtype),
                timestep=time,
                encoder_hidden_states=tokens.to(x.device, dtype),
                encoder_hidden_states_mask=None if mask is None else mask.to(x.device),
                img_shapes=[[(1, height // 2, width // 2)]] * len(x),
                return_dict=False,
            )[0]
        return unpack_latents(velocity.to(x.dtype), height, width)

    def rescaled(self, guided: Tensor, positive: Tensor) -> Tensor:
        height, width = self._shape[1:]
        packed = pack_latents(guided)
        norm, target = (tokens.norm(dim=-1, keepdim=True) for tokens in (packed, pack_latents(positive)))
        return unpack_latents(packed * (target / norm), height, width)

    def decode(self, x0: Tensor) -> Tensor:
        return decode_causal(self.pipe, x0.unsqueeze(2), self.gradient_checkpointing).squeeze(2)
