"""Wan2.1 text-to-video as a model for the samplers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import WanPipeline
from torch import Tensor

from ..checks import check_integer
from .causal_vae import decode_causal
from .guidance import GuidedFlow
from .offload import rewire_offload_hooks
from .pipeline import FamilyFacts, image_size
from .prompts import Encoded
from .times import scheduler_sigmas

PROMPT_LENGTH = 512
"""Number of UMT5 tokens of a prompt; shorter prompts are padded with zeros."""


class WanFlow(GuidedFlow):
    """A WanPipeline as `sampling.FlowModel` of videos. See `PipelineModel` for how the pipeline is used.

    Latents are (16, F, H/8, W/8), float32. The times are those of the pipeline's scheduler. The
    samplers make first-order steps, also with a multistep scheduler such as UniPC. Videos are decoded one
    latent frame at a time; tiling and slicing of the VAE are ignored.

    Args:
        pipe: Wan2.1 T2V, or a model derived from it. Wan2.2, with two transformers or another VAE, is not
            supported.
        height, width: size of videos in pixels, multiples of 16; None is 480 x 832.
        num_frames: number of frames, 4 k + 1: the first latent frame holds one frame, every other one four;
            None is 81.
        guidance_scale: scale of classifier-free guidance, v = v(negative) + scale (v(prompt) - v(negative)).
            A guided velocity takes two passes through the transformer; at 1 and below there is one pass and
            no guidance.
        negative_prompt: prompt that guidance leads away from.
        fps: frames per second that the model was made for; used for video files only.
        gradient_checkpointing: see `PipelineModel`; decoding then keeps the graph of one latent frame only.

    Raises:
        ValueError, TypeError: an argument is out of its range, the pipeline has no transformer or no VAE, is
            Wan2.2, or is under group offloading.
    """

    facts = FamilyFacts("Wan2.1", WanPipeline, videos=True)

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
        self.check_guidance(guidance_scale, negative_prompt)
        check_integer("WanFlow", "fps", fps, 1)
        spatial, temporal = pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal
        patch = pipe.transformer.config.patch_size[1]
        positions = pipe.transformer.config.rope_max_seq_len
        most = spatial * patch * positions
        size = image_size("WanFlow", height, width, (480, 832), spatial * patch, (most, most))
        frames = _latent_frames(81 if num_frames is None else num_frames, temporal)
        if frames > positions:
            raise ValueError(
                f"WanFlow: num_frames must be at most {(positions - 1) * temporal + 1}, the last position "
                f"that the model knows, got {num_frames}"
            )
        self.fps = fps
        shape = (pipe.transformer.config.in_channels, frames, *(side // spatial for side in size))
        super().__init__(
            pipe,
            shape,
            PROMPT_LENGTH,
            gradient_checkpointing,
            weight=guidance_scale,
            negative_prompt=negative_prompt,
        )

    @classmethod
    def check_index(cls, owner: str, index: Mapping[str, Any]) -> None:
        _check_version(owner, index.get("boundary_ratio") is not None or index.get("expand_timesteps"))

    @classmethod
    def check_parts(cls, owner: str, pipe: Any) -> None:
        _check_version(owner, pipe.vae.config.patch_size is not None)
        super().check_parts(owner, pipe)

    def encode_prompt(self, prompt: str) -> Encoded:
        tokens, _ = self.pipe.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            max_sequence_length=self.prompt_length,
            device=self.device,
        )
        return {"tokens": tokens}

    def placeholder_prompt(self) -> Encoded:
        return {"tokens": torch.empty(1, self.prompt_length, self.pipe.transformer.config.text_dim)}

    def sigmas(self, n: int) -> Tensor:
        return scheduler_sigmas(self.pipe.scheduler, n)

    def conditional_velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        transformer = self.pipe.transformer
        tokens = self.prompts.batch(prompts)["tokens"].to(x.device, transformer.dtype)
        rewire_offload_hooks(self.pipe)
        velocity: Tensor = transformer(
            hidden_states=x.to(transformer.dtype),
            # float32, not rounded to integers as in schedulers
            timestep=torch.full((len(x),), 1000 * sigma, dtype=torch.float32, device=x.device),
            encoder_hidden_states=tokens,
            return_dict=False,
        )[0]
        return velocity.to(x.dtype)

    def decode(self, x0: Tensor) -> Tensor:
        return decode_causal(self.pipe, x0, self.gradient_checkpointing)


def _check_version(owner: str, newer: Any) -> None:
    """Raise ValueError if a model is newer than Wan2.1."""
    if newer:
        raise ValueError(f"{owner} must be Wan2.1; Wan2.2, which has other components, is not supported")


def _latent_frames(num_frames: int, factor: int) -> int:
    """Return the number of latent frames; raise TypeError or ValueError unless num_frames is factor k + 1."""
    check_integer("WanFlow", "num_frames", num_frames, 1)
    if (num_frames - 1) % factor:
        below = (num_frames - 1) // factor * factor + 1
        raise ValueError(
            f"WanFlow: num_frames must be {factor} k + 1, got {num_frames}; "
            f"{below} and {below + factor} are nearest"
        )
    return (num_frames - 1) // factor + 1
