"""LTX-Video as a model for the samplers."""

from collections.abc import Sequence

import torch
from diffusers import LTXPipeline
from torch import Tensor

from ..checks import check_integer, check_number
from .guidance import GuidedFlow
from .offload import execution_device
from .pipeline import FamilyFacts, image_size, latent_frames, to_pixels
from .prompts import Encoded
from .times import shifted_sigmas, size_shift
from .weights import compute_dtype

PROMPT_LENGTH = 128
"""Number of T5 tokens that prompts are cut or padded to; padding is masked."""


class LTXFlow(GuidedFlow):
    """An LTXPipeline as `sampling.FlowModel` of videos. See `PipelineModel` for how the pipeline is used.

    Latents are (128, F, H/32, W/32), float32 outside of the networks, in any dtype of the networks. With
    `Schedule("constant", 0)` the samplers follow the same path as `pipe(...)`.

    Decoding is deterministic. Decoders of 0.9.1 and later read a time and make noise. The time is
    `decode_timestep`, and no noise is added to the latents, as in `pipe(..., decode_noise_scale=0)`. The
    noise within the decoder always has the seed 0; torch's random state stays unchanged.

    Args:
        pipe: LTX-Video, or a model derived from it.
        height, width: size of videos in pixels, multiples of 32; None is 512 x 704.
        num_frames: number of frames, 8 k + 1: the first latent frame holds one frame, every other one eight;
            None is 161.
        guidance_scale: scale of classifier-free guidance, v = v(negative) + scale (v(prompt) - v(negative)).
            A guided velocity takes two passes through the transformer; at 1 and below there is one pass and
            no guidance.
        negative_prompt: prompt that guidance leads away from.
        fps: frames per second, which the transformer reads too.
        decode_timestep: time from 0 to 1 for decoders that read one; others ignore it.
        gradient_checkpointing: see `PipelineModel`.

    Raises:
        ValueError, TypeError: an argument is out of its range, the pipeline has no transformer or no VAE, or
            it is under group offloading.
    """

    facts = FamilyFacts("LTX-Video", LTXPipeline, videos=True)

    def __init__(
        self,
        pipe: LTXPipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        guidance_scale: float = 3.0,
        negative_prompt: str = "",
        fps: int | None = None,
        decode_timestep: float = 0.0,
        gradient_checkpointing: bool | None = None,
    ) -> None:
        self.check(pipe)
        self.check_guidance(guidance_scale, negative_prompt)
        self.fps = 25 if fps is None else fps
        check_integer("LTXFlow", "fps", self.fps, 1)
        check_number("LTXFlow", "decode_timestep", decode_timestep, 0, 1)
        self._decode_timestep = decode_timestep
        spatial, temporal = pipe.vae_spatial_compression_ratio, pipe.vae_temporal_compression_ratio
        size = image_size("LTXFlow", height, width, (512, 704), spatial)
        frames = latent_frames("LTXFlow", 161 if num_frames is None else num_frames, temporal)
        super().__init__(
            pipe,
            (pipe.transformer.config.in_channels, frames, *(side // spatial for side in size)),
            PROMPT_LENGTH,
            gradient_checkpointing,
            weight=guidance_scale,
            negative_prompt=negative_prompt,
        )

    def encode_prompt(self, prompt: str) -> Encoded:
        tokens, mask, _, _ = self.pipe.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            max_sequence_length=self.prompt_length,
            device=self.device,
        )
        return {"tokens": tokens, "mask": mask}

    def placeholder_prompt(self) -> Encoded:
        return {
            "tokens": torch.empty(1, self.prompt_length, self.pipe.transformer.config.caption_channels),
            "mask": torch.empty(1, self.prompt_length, dtype=torch.bool),
        }

    def sigmas(self, n: int) -> Tensor:
        scheduler, (_, frames, height, width) = self.pipe.scheduler, self._shape
        return shifted_sigmas(scheduler, n, size_shift(scheduler, frames * height * width))

    def conditional_velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        pipe, transformer, (_, frames, height, width) = self.pipe, self.pipe.transformer, self._shape
        prompt, dtype = self.prompts.batch(prompts), compute_dtype(transformer)
        self.prepare()
        spatial = pipe.vae_spatial_compression_ratio
        velocity: Tensor = transformer(
            hidden_states=x.to(dtype).flatten(2).transpose(1, 2),
            encoder_hidden_states=prompt["tokens"].to(x.device, dtype),
            # float32 for any dtype of the weights
            timestep=torch.full((len(x),), 1000 * sigma, dtype=torch.float32, device=x.device),
            encoder_attention_mask=prompt["mask"].to(x.device),
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(pipe.vae_temporal_compression_ratio / self.fps, spatial, spatial),
            return_dict=False,
        )[0]
        return velocity.to(x.dtype).transpose(1, 2).reshape(x.shape)

    def decode(self, x0: Tensor) -> Tensor:
        vae = self.pipe.vae
        self.prepare()
        latents = self.unscaled(x0).to(execution_device(vae), compute_dtype(vae))
        time = (
            latents.new_full((len(x0),), self._decode_timestep) if vae.config.timestep_conditioning else None
        )
        # one by one with slicing, which diffusers cannot do for latents with a time
        count = 1 if vae.use_slicing else len(x0)
        decoded = []
        for start in range(0, len(x0), count):
            part = slice(start, start + count)
            # checkpointing restores the state for the recomputation, so the backward sees the same noise
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                torch.manual_seed(0)  # of all devices
                at = None if time is None else time[part]
                decoded.append(vae.decode(latents[part], at, return_dict=False)[0])
        return to_pixels(torch.cat(decoded), x0)

    def unscaled(self, x0: Tensor) -> Tensor:
        vae = self.pipe.vae
        mean, std = (one.to(x0).view(-1, 1, 1, 1) for one in (vae.latents_mean, vae.latents_std))
        return x0 * std / vae.config.scaling_factor + mean
