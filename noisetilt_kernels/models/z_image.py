"""Z-Image as a model for the samplers."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderTiny, ZImagePipeline
from torch import Tensor

from .guidance import GuidedFlow
from .pipeline import FamilyFacts, image_size
from .prompts import Encoded
from .times import sigmas_of_patches
from .weights import compute_dtype

PROMPT_LENGTH = 512
"""Maximum number of Qwen3 tokens of a prompt; shorter prompts are not padded."""


class ZImageFlow(GuidedFlow):
    """A ZImagePipeline as `sampling.FlowModel`. See `PipelineModel` for how the pipeline is used.

    Latents are (16, H/8, W/8). They are float32 outside of the networks, in any dtype of the networks. With
    `Schedule("constant", 0)` the samplers follow the same path as `pipe(...)` with its cfg_normalization and
    cfg_truncation off, which is the default.

    Prompts are not padded to a common length. In a batch the transformer pads them to the longest and masks
    the padding: a particle's velocity depends on the other particles by rounding only.

    Args:
        pipe: Z-Image, Z-Image-Turbo, or a model derived from them.
        height, width: size of images in pixels, multiples of 16; None is 1024.
        guidance_scale: scale of classifier-free guidance as in this pipeline, v = v(prompt) + scale
            (v(prompt) - v(negative)). A guided velocity takes two passes through the transformer; at 0, which
            Turbo was made for, there is one pass and no guidance.
        negative_prompt: prompt that guidance leads away from.
        gradient_checkpointing, reward_decoder: see `PipelineModel`.

    Raises:
        ValueError, TypeError: an argument is out of its range, the pipeline has no transformer or no VAE, or
            it is under group offloading.
    """

    facts = FamilyFacts("Z-Image", ZImagePipeline, tiny=True)

    def __init__(
        self,
        pipe: ZImagePipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float = 5.0,
        negative_prompt: str = "",
        gradient_checkpointing: bool | None = None,
        reward_decoder: AutoencoderTiny | None = None,
    ) -> None:
        self.check(pipe)
        self.check_guidance(guidance_scale, negative_prompt, no_effect=0)
        factor = pipe.vae_scale_factor
        rows, columns = pipe.transformer.axes_lens[1:]
        most = 2 * factor * rows, 2 * factor * columns
        size = image_size("ZImageFlow", height, width, (1024, 1024), 2 * factor, most)
        shape = (pipe.transformer.in_channels, *(side // factor for side in size))
        weight = 1 + guidance_scale  # v(negative) + (1 + scale) (v(prompt) - v(negative)) is the same
        super().__init__(
            pipe,
            shape,
            PROMPT_LENGTH,
            gradient_checkpointing,
            weight=weight,
            negative_prompt=negative_prompt,
            reward_decoder=reward_decoder,
        )

    def encode_prompt(self, prompt: str) -> Encoded:
        (tokens,), _ = self.pipe.encode_prompt(
            prompt, self.device, do_classifier_free_guidance=False, max_sequence_length=self.prompt_length
        )
        return {"tokens": tokens[None]}

    def placeholder_prompt(self) -> Encoded:
        return {"tokens": torch.empty(1, self.prompt_length, self.pipe.transformer.config.cap_feat_dim)}

    def sigmas(self, n: int) -> Tensor:
        return sigmas_of_patches(self.pipe.scheduler, n, self._shape)

    def conditional_velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        transformer = self.pipe.transformer
        dtype = compute_dtype(transformer)
        tokens = [encoded["tokens"][0].to(x.device, dtype) for encoded in self.prompts.get(prompts)]
        self.prepare()
        # the transformer's time runs from noise at 0 to data at 1: its output is -v; embedded in float32
        negative_velocity: list[Tensor] = transformer(
            list(x.to(dtype).unsqueeze(2)),  # (C, 1, H, W) each
            torch.full((len(x),), 1 - sigma, dtype=torch.float32, device=x.device),
            tokens,
            return_dict=False,
        )[0]
        return -torch.stack(negative_velocity).squeeze(2).to(x.dtype)
