"""SANA-Sprint as a model for the samplers."""

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
from ..recompute import replace_forwards
from .offload import execution_device
from .pipeline import FamilyFacts, OneStepPipelineModel, image_size, to_pixels
from .prompts import Encoded
from .weights import compute_dtype

PROMPT_LENGTH = 300
"""Number of Gemma tokens kept: the first one, and the last 299 of instruction and prompt."""

_DEFAULTS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(SanaSprintPipeline.__call__).parameters.items()
}
"""Default arguments of the pipeline's call."""


class SanaSprint(OneStepPipelineModel):
    """A SanaSprintPipeline as `sampling.OneStepModel`. See `PipelineModel` for how the pipeline is used.

    Latents are (32, H/32, W/32). They are float32 outside of the networks, in any dtype of the networks.
    Images equal, to rounding, those of
    `pipe(prompt, num_inference_steps=1, intermediate_timesteps=None, use_resolution_binning=False)`: prompts
    get the pipeline's default instruction, and sizes are not rounded to the nearest of a list.

    Args:
        pipe: SANA-Sprint, or a model derived from it.
        height, width: size of images in pixels, multiples of 32; None is the size in the transformer's
            configuration, 1024.
        guidance_scale: embedded guidance scale passed to the transformer, at least 0; always one pass.
        gradient_checkpointing: see `PipelineModel`. The VAE's class does not support it, so its decoder is
            recomputed layer by layer.

    Raises:
        ValueError, TypeError: an argument is out of its range, the pipeline has no transformer or no VAE, its
            transformer has no embedded guidance, or it is under group offloading.
    """

    facts = FamilyFacts("SANA-Sprint", SanaSprintPipeline)

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
        check_number("SanaSprint", "guidance_scale", guidance_scale, 0)
        self._guidance_scale = float(guidance_scale)
        default = pipe.transformer.config.sample_size * pipe.vae_scale_factor
        factor = pipe.vae_scale_factor
        size = image_size(
            "SanaSprint", height, width, (default, default), factor * pipe.transformer.config.patch_size
        )
        shape = (pipe.transformer.config.in_channels, *(side // factor for side in size))
        super().__init__(pipe, shape, PROMPT_LENGTH, gradient_checkpointing)

    @classmethod
    def check_parts(cls, owner: str, pipe: Any) -> None:
        super().check_parts(owner, pipe)
        if not pipe.transformer.config.guidance_embeds:
            raise ValueError(f"{owner} must have a transformer with guidance_embeds, as SANA-Sprint has")

    def encode_prompt(self, prompt: str) -> Encoded:
        tokens, mask = self.pipe.encode_prompt(
            prompt,
            device=self.device,
            max_sequence_length=self.prompt_length,
            complex_human_instruction=_DEFAULTS["complex_human_instruction"],
        )
        return {"tokens": tokens, "mask": mask}

    def placeholder_prompt(self) -> Encoded:
        return {
            "tokens": torch.empty(1, self.prompt_length, self.pipe.transformer.config.caption_channels),
            "mask": torch.empty(1, self.prompt_length, dtype=torch.int64),
        }

    def denoised(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return latents after one step from noise x, see `OneStepPipelineModel.denoised`.

        The step is one of TrigFlow from the angle t of pure noise: cos(t) x - sin(t) F, in units of
        sigma_data. The transformer predicts a rectified flow at the time s = sin(t) / (cos(t) + sin(t)); F
        follows from it.
        """
        self.check_latents("denoised", x, prompts)
        transformer = self.pipe.transformer
        dtype = compute_dtype(transformer)
        prompt = self.prompts.batch(prompts)
        self.prepare()
        cos, sin = math.cos(_DEFAULTS["max_timesteps"]), math.sin(_DEFAULTS["max_timesteps"])
        s = sin / (cos + sin)
        norm = math.hypot(s, 1 - s)
        noisy = norm * x
        time = torch.full((len(x),), s, dtype=torch.float32, device=x.device)
        output: Tensor = transformer(
            noisy.to(dtype),
            encoder_hidden_states=prompt["tokens"].to(x.device, dtype),
            encoder_attention_mask=prompt["mask"].to(x.device),
            timestep=time,
            # float32; the pipeline would round it to the dtype of the embeddings
            guidance=torch.full_like(time, self._guidance_scale * transformer.config.guidance_embeds_scale),
            return_dict=False,
        )[0]
        velocity = ((1 - 2 * s) * noisy + (1 - 2 * s + 2 * s**2) * output.to(x.dtype)) / norm
        return cos * x - sin * velocity

    def decode(self, x0: Tensor) -> Tensor:
        vae = self.pipe.vae
        self.prepare()
        latents = (x0 / vae.config.scaling_factor).to(execution_device(vae), compute_dtype(vae))
        layers = [layer for block in vae.decoder.up_blocks for layer in block]
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        with (
            replace_forwards(layers, partial(checkpoint, use_reentrant=False)) if recompute else nullcontext()
        ):
            images: Tensor = vae.decode(latents, return_dict=False)[0]
        return to_pixels(images, x0)
