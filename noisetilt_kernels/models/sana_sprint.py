"""SANA-Sprint of diffusers as a model for the samplers."""

import inspect
import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from diffusers import SanaSprintPipeline
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..checks import check_number
from .offload import execution_device, keep_until_backward
from .pipeline import OneStepPipelineModel, check_sides, in_unit_interval
from .prompts import Encoded
from .recompute import forwards_replaced

PROMPT_LENGTH = 300
"""Tokens of Gemma that are kept: the first, and the last of instruction and prompt."""

_DEFAULTS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(SanaSprintPipeline.__call__).parameters.items()
}
"""Of the pipeline's call."""


class SanaSprint(OneStepPipelineModel):
    """A SanaSprintPipeline as `sampling.OneStepModel`; what it does with the pipeline is as of `PipelineModel`.

    Latents are (32, H, W), float32 outside of the networks whatever dtype those are in. The images are those of
    `pipe(prompt, num_inference_steps=1, intermediate_timesteps=None, use_resolution_binning=False)`, to rounding:
    prompts get the pipeline's own instruction, and sizes are what is asked for, not the nearest of a list.

    Args:
        pipe: SANA-Sprint, or made of it.
        height, width: of images, in pixels, multiples of 32; None is the size that the transformer was made for, 1024.
        guidance_scale: which the transformer is told; one pass whatever it is.
        gradient_checkpointing: as of `PipelineModel`; the VAE, whose class has nothing of its own for it, then
            recomputes its decoder layer by layer as well.

    Raises:
        ValueError, TypeError: an argument out of its range; a pipeline without transformer or VAE, of a transformer
            that is told no guidance, or under group offloading.
    """

    pipeline = SanaSprintPipeline

    def __init__(
        self,
        pipe: SanaSprintPipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float = 4.5,
        gradient_checkpointing: bool | None = None,
    ) -> None:
        self.check(pipe)
        if not pipe.transformer.config.guidance_embeds:
            raise ValueError(
                "SanaSprint: pipe must have a transformer with guidance_embeds, as SANA-Sprint's"
            )
        check_number("SanaSprint", "guidance_scale", guidance_scale, 0)
        self._guidance_scale = float(guidance_scale)
        default = pipe.transformer.config.sample_size * pipe.vae_scale_factor
        sides = {
            "height": default if height is None else height,
            "width": default if width is None else width,
        }
        check_sides("SanaSprint", sides, pipe.vae_scale_factor * pipe.transformer.config.patch_size)
        shape = (
            pipe.transformer.config.in_channels,
            *(side // pipe.vae_scale_factor for side in sides.values()),
        )
        super().__init__(pipe, shape, PROMPT_LENGTH, gradient_checkpointing)

    def encode_prompt(self, prompt: str) -> Encoded:
        tokens, mask = self.pipe.encode_prompt(
            prompt,
            device=self.device,
            max_sequence_length=self.prompt_length,
            complex_human_instruction=_DEFAULTS["complex_human_instruction"],
        )
        return {"tokens": tokens, "mask": mask}

    def blank_prompt(self) -> Encoded:
        return {
            "tokens": torch.empty(1, self.prompt_length, self.pipe.transformer.config.caption_channels),
            "mask": torch.empty(1, self.prompt_length, dtype=torch.int64),
        }

    def denoised(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        """One step of TrigFlow from the angle where there is noise only: cos(t) x - sin(t) F, in units of sigma_data.

        The transformer is one of a rectified flow at time s = sin / (cos + sin), of which F is made.
        """
        self.check_latents("denoised", x, prompts)
        transformer = self.pipe.transformer
        prompt = self.prompts.batch(prompts)
        keep_until_backward(self.pipe)
        cos, sin = math.cos(_DEFAULTS["max_timesteps"]), math.sin(_DEFAULTS["max_timesteps"])
        s = sin / (cos + sin)
        norm = math.hypot(s, 1 - s)
        noisy = norm * x
        time = torch.full((len(x),), s, dtype=torch.float32, device=x.device)
        output: Tensor = transformer(
            noisy.to(transformer.dtype),
            encoder_hidden_states=prompt["tokens"].to(x.device, transformer.dtype),
            encoder_attention_mask=prompt["mask"].to(x.device),
            timestep=time,
            # float32, though the pipeline rounds it to the dtype of the prompt
            guidance=torch.full_like(time, self._guidance_scale * transformer.config.guidance_embeds_scale),
            return_dict=False,
        )[0]
        velocity = ((1 - 2 * s) * noisy + (1 - 2 * s + 2 * s**2) * output.to(x.dtype)) / norm
        return cos * x - sin * velocity

    def decode(self, x0: Tensor) -> Tensor:
        vae = self.pipe.vae
        keep_until_backward(self.pipe)
        latents = (x0 / vae.config.scaling_factor).to(execution_device(vae), vae.dtype)
        layers = [layer for block in vae.decoder.up_blocks for layer in block]
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        with (
            forwards_replaced(layers, partial(checkpoint, use_reentrant=False))
            if recompute
            else nullcontext()
        ):
            images: Tensor = vae.decode(latents, return_dict=False)[0]
        return in_unit_interval(images, x0)
