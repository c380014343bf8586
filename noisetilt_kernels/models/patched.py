"""Models whose transformer reads patches of 2x2 latent values and the tokens of one text encoder."""

from typing import Any

import torch

from .guidance import GuidedFlow
from .pipeline import image_size
from .prompts import Encoded

PROMPT_LENGTH = 512
"""Maximum number of tokens of a prompt."""


class PatchedFlow(GuidedFlow):
    """Common part of the models of Qwen-Image and FLUX.2.

    Args:
        pipe: the pipeline, already checked.
        height, width: size of images in pixels; None is the pipeline's default.
        gradient_checkpointing: see `PipelineModel`.
        weight, negative_prompt: see `GuidedFlow`.

    Raises:
        ValueError: the size is not valid.
    """

    def __init__(
        self,
        pipe: Any,
        height: int | None,
        width: int | None,
        gradient_checkpointing: bool | None,
        *,
        weight: float,
        negative_prompt: str,
    ) -> None:
        factor, default = pipe.vae_scale_factor, pipe.default_sample_size * pipe.vae_scale_factor
        size = image_size(type(self).__name__, height, width, (default, default), 2 * factor)
        shape = (pipe.transformer.config.in_channels // 4, *(side // factor for side in size))
        super().__init__(
            pipe,
            shape,
            PROMPT_LENGTH,
            gradient_checkpointing,
            weight=weight,
            negative_prompt=negative_prompt,
        )

    def encode_prompt(self, prompt: str) -> Encoded:
        tokens, _ = self.pipe.encode_prompt(prompt, self.device, max_sequence_length=self.prompt_length)
        return {"tokens": tokens}

    def placeholder_prompt(self) -> Encoded:
        return {
            "tokens": torch.empty(1, self.prompt_length, self.pipe.transformer.config.joint_attention_dim)
        }
