"""Z-Image of diffusers as a model for the samplers."""

from collections.abc import Sequence

import torch
from diffusers import ZImagePipeline
from torch import Tensor

from .guidance import GuidedFlow
from .offload import keep_until_backward
from .pipeline import check_sides
from .prompts import Encoded
from .times import shifted_sigmas

PROMPT_LENGTH = 512
"""Tokens of Qwen3, of which those that a prompt leaves over are dropped."""


class ZImageFlow(GuidedFlow):
    """A ZImagePipeline as `sampling.FlowModel`; what it does with the pipeline is as of `PipelineModel`.

    Latents are (16, H, W), float32 outside of the networks whatever dtype those are in. With `Schedule("constant", 0)`
    the samplers walk the path of `pipe(...)`, without its cfg_normalization and cfg_truncation, which are off there
    too.

    Prompts have as many tokens as they need. In a batch the transformer pads them to the longest, and masks that: a
    particle's velocity depends on its batch mates by rounding only.

    Args:
        pipe: Z-Image, Z-Image-Turbo, or made of them.
        height, width: of images, in pixels, multiples of 16; None is 1024.
        guidance_scale: of classifier-free guidance as this pipeline has it, v = v(prompt) + scale (v(prompt) -
            v(negative)), which takes two passes through the transformer for one velocity; at 0 there is one pass and
            no guidance, which is what Turbo was made for.
        negative_prompt: what guidance leads away from.
        gradient_checkpointing: as of `PipelineModel`.

    Raises:
        ValueError, TypeError: an argument out of its range; a pipeline without transformer or VAE, or under group
            offloading.
    """

    pipeline = ZImagePipeline

    def __init__(
        self,
        pipe: ZImagePipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float = 5.0,
        negative_prompt: str = "",
        gradient_checkpointing: bool | None = None,
    ) -> None:
        self.check(pipe)
        self.check_guidance(guidance_scale, negative_prompt)
        sides = {"height": 1024 if height is None else height, "width": 1024 if width is None else width}
        check_sides("ZImageFlow", sides, 2 * pipe.vae_scale_factor)
        shape = (pipe.transformer.in_channels, *(side // pipe.vae_scale_factor for side in sides.values()))
        weight = 1 + guidance_scale  # v(prompt) + scale (v(prompt) - v(negative)), put another way
        super().__init__(
            pipe, shape, PROMPT_LENGTH, gradient_checkpointing, weight=weight, negative_prompt=negative_prompt
        )

    def encode_prompt(self, prompt: str) -> Encoded:
        (tokens,), _ = self.pipe.encode_prompt(
            prompt, self.device, do_classifier_free_guidance=False, max_sequence_length=self.prompt_length
        )
        return {"tokens": tokens[None]}

    def blank_prompt(self) -> Encoded:
        return {"tokens": torch.empty(1, self.prompt_length, self.pipe.transformer.config.cap_feat_dim)}

    def sigmas(self, n: int) -> Tensor:
        return shifted_sigmas(self.pipe.scheduler, n, self._shape[1] * self._shape[2] // 4)

    def unguided(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        transformer = self.pipe.transformer
        tokens = [each["tokens"][0].to(x.device, transformer.dtype) for each in self.prompts.each(prompts)]
        keep_until_backward(self.pipe)
        # time runs from noise at 0 to data at 1, and so does the output; its embedding is made in float32
        towards_data: list[Tensor] = transformer(
            list(x.to(transformer.dtype).unsqueeze(2)),  # of (C, 1, H, W)
            torch.full((len(x),), 1 - sigma, dtype=torch.float32, device=x.device),
            tokens,
            return_dict=False,
        )[0]
        return -torch.stack(towards_data).squeeze(2).to(x.dtype)
