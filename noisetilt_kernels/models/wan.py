"""Wan2.1 text-to-video of diffusers as a model for the samplers."""

from collections.abc import Sequence

import torch
from diffusers import WanPipeline
from torch import Tensor

from ..checks import check_integer
from .guidance import GuidedFlow
from .offload import execution_device, keep_until_backward
from .pipeline import check_sides, in_unit_interval
from .prompts import Encoded
from .times import fixed_sigmas
from .wan_decoder import decode_frames

PROMPT_LENGTH = 512
"""Tokens of UMT5, of which what a prompt leaves over is zeros."""


class WanFlow(GuidedFlow):
    """A WanPipeline as `sampling.FlowModel` of videos; what it does with the pipeline is as of `PipelineModel`.

    Latents are (16, F, H, W), float32. The times are those of the pipeline's scheduler, of which the multistep ones,
    such as UniPC, are asked for nothing else: the samplers make steps of first order. Videos are decoded one latent
    frame at a time; tiling and slicing of the VAE are ignored.

    Args:
        pipe: Wan2.1 T2V, or made of it. Wan2.2, with its two transformers or its other VAE, is not supported.
        height, width: of videos, in pixels; multiples of 16.
        num_frames: 4 k + 1, as the first latent frame holds one and the others four each.
        guidance_scale: of classifier-free guidance, v = v(negative) + scale (v(prompt) - v(negative)), which takes two
            passes through the transformer for one velocity; at 1 and below there is one pass and no guidance.
        negative_prompt: what guidance leads away from.
        fps: frames a second that the model was made for; nothing here depends on it but files.
        gradient_checkpointing: as of `PipelineModel`; decoding then keeps the graph of one latent frame only.

    Raises:
        ValueError, TypeError: an argument out of its range; a pipeline without transformer or VAE, of Wan2.2, or under
            group offloading.
    """

    pipeline = WanPipeline

    def __init__(
        self,
        pipe: WanPipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        guidance_scale: float = 5.0,
        negative_prompt: str = "",
        fps: int = 16,
        gradient_checkpointing: bool | None = None,
    ) -> None:
        self.check(pipe)
        if (
            pipe.config.boundary_ratio is not None
            or pipe.config.expand_timesteps
            or pipe.vae.config.patch_size is not None
        ):
            raise ValueError("WanFlow: pipe must be Wan2.1; Wan2.2, which has other parts, is not supported")
        self.check_guidance(guidance_scale, negative_prompt)
        check_integer("WanFlow", "fps", fps, 1)
        sides = {"height": 480 if height is None else height, "width": 832 if width is None else width}
        spatial, temporal = pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal
        check_sides("WanFlow", sides, spatial * pipe.transformer.config.patch_size[1])
        frames = _latent_frames(81 if num_frames is None else num_frames, temporal)
        self.fps = fps
        shape = (pipe.transformer.config.in_channels, frames, *(side // spatial for side in sides.values()))
        super().__init__(
            pipe,
            shape,
            PROMPT_LENGTH,
            gradient_checkpointing,
            weight=guidance_scale,
            negative_prompt=negative_prompt,
        )

    def encode_prompt(self, prompt: str) -> Encoded:
        tokens, _ = self.pipe.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            max_sequence_length=self.prompt_length,
            device=self.device,
        )
        return {"tokens": tokens}

    def blank_prompt(self) -> Encoded:
        return {"tokens": torch.empty(1, self.prompt_length, self.pipe.transformer.config.text_dim)}

    def sigmas(self, n: int) -> Tensor:
        return fixed_sigmas(self.pipe.scheduler, n)

    def unguided(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        transformer = self.pipe.transformer
        tokens = self.prompts.batch(prompts)["tokens"].to(x.device, transformer.dtype)
        keep_until_backward(self.pipe)
        velocity: Tensor = transformer(
            hidden_states=x.to(transformer.dtype),
            # float32, and not rounded to integers as the schedulers' own
            timestep=torch.full((len(x),), 1000 * sigma, dtype=torch.float32, device=x.device),
            encoder_hidden_states=tokens,
            return_dict=False,
        )[0]
        return velocity.to(x.dtype)

    def decode(self, x0: Tensor) -> Tensor:
        vae = self.pipe.vae
        keep_until_backward(self.pipe)
        hook = getattr(vae, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(vae)  # as vae.decode does, to have its weights brought to the device
        device = execution_device(vae)
        mean, std = (
            torch.tensor(values, device=device, dtype=x0.dtype).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        decoded = decode_frames(vae, (x0.to(device) * std + mean).to(vae.dtype), self.gradient_checkpointing)
        return in_unit_interval(decoded, x0)


def _latent_frames(num_frames: int, factor: int) -> int:
    check_integer("WanFlow", "num_frames", num_frames, 1)
    if (num_frames - 1) % factor:
        below = (num_frames - 1) // factor * factor + 1
        raise ValueError(
            f"WanFlow: num_frames must be {factor} k + 1, got {num_frames}; {below} and {below + factor} are nearest"
        )
    return (num_frames - 1) // factor + 1
