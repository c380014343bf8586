"""Wan2.1 and Wan2.2 text-to-video as models for the samplers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import WanPipeline
from torch import Tensor

from ..checks import check_integer, check_number
from .causal_vae import decode_causal
from .guidance import GuidedFlow
from .pipeline import FamilyFacts, image_size, latent_frames
from .prompts import Encoded
from .times import scheduler_sigmas
from .weights import compute_dtype

PROMPT_LENGTH = 512
"""Number of UMT5 tokens of a prompt; shorter prompts are padded with zeros."""


class WanFlow(GuidedFlow):
    """A WanPipeline as `sampling.FlowModel` of videos. See `PipelineModel` for how the pipeline is used.

    Latents are (16, F, H/8, W/8), or (48, F, H/16, W/16) for Wan2.2 5B; float32. The times are those of the
    pipeline's scheduler. The samplers make first-order steps, also with a multistep scheduler such as UniPC.
    Videos are decoded one latent frame at a time; tiling and slicing of the VAE are ignored.

    Args:
        pipe: Wan2.1 T2V, Wan2.2 T2V A14B or TI2V 5B, or a model derived from them. A14B has two transformers:
            `transformer` from the time 1 down to the pipeline's boundary_ratio, `transformer_2` below. The
            boundary is compared with the shifted times.
        height, width: size of videos in pixels, multiples of 16, or of 32 for 5B; None is 480 x 832.
        num_frames: number of frames, 4 k + 1: the first latent frame holds one frame, every other one four;
            None is 81.
        guidance_scale: scale of classifier-free guidance, v = v(negative) + scale (v(prompt) - v(negative)).
            A guided velocity takes two passes through the transformer; at 1 and below there is one pass and
            no guidance.
        guidance_scale_2: scale for `transformer_2`; None is guidance_scale.
        negative_prompt: prompt that guidance leads away from.
        fps: frames per second, used for video files only; None is the model's, 24 for 5B and 16 for others.
        gradient_checkpointing: see `PipelineModel`; decoding then keeps the graph of one latent frame only.

    Raises:
        ValueError, TypeError: an argument is out of its range, the pipeline lacks a transformer or a VAE, or
            it is under group offloading.
    """

    facts = FamilyFacts("Wan", WanPipeline, experts=("transformer_2",), videos=True)

    def __init__(
        self,
        pipe: WanPipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        guidance_scale: float = 5.0,
        guidance_scale_2: float | None = None,
        negative_prompt: str = "",
        fps: int | None = None,
        gradient_checkpointing: bool | None = None,
    ) -> None:
        self.check(pipe)
        self._weights = _guidance_scales(pipe, guidance_scale, guidance_scale_2)
        self.check_guidance(max(self._weights), negative_prompt)
        self.fps = (24 if pipe.config.expand_timesteps else 16) if fps is None else fps
        check_integer("WanFlow", "fps", self.fps, 1)
        spatial, temporal = pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal
        patch = pipe.transformer.config.patch_size[1]
        positions = pipe.transformer.config.rope_max_seq_len
        most = spatial * patch * positions
        size = image_size("WanFlow", height, width, (480, 832), spatial * patch, (most, most))
        frames = latent_frames("WanFlow", 81 if num_frames is None else num_frames, temporal)
        if frames > positions:
            raise ValueError(
                f"WanFlow: num_frames must be at most {(positions - 1) * temporal + 1}, the last position "
                f"that the model knows, got {num_frames}"
            )
        shape = (pipe.transformer.config.in_channels, frames, *(side // spatial for side in size))
        super().__init__(
            pipe,
            shape,
            PROMPT_LENGTH,
            gradient_checkpointing,
            weight=max(self._weights),
            negative_prompt=negative_prompt,
        )

    @classmethod
    def check_index(cls, owner: str, index: Mapping[str, Any]) -> None:
        super().check_index(owner, index)
        ratio, (_, second) = index.get("boundary_ratio"), index.get("transformer_2") or (None, None)
        if ratio is not None and second is None:
            raise ValueError(
                f"{owner} must have a transformer_2, which takes over at its boundary_ratio of {ratio:g}; "
                "load it with all components"
            )

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

    def _expert_at(self, sigma: float) -> int:
        """Return the number of the expert for a time: 0 for `transformer`, 1 for `transformer_2`."""
        ratio, steps = self.pipe.config.boundary_ratio, self.pipe.scheduler.config.num_train_timesteps
        # float32 as the scheduler's timesteps, which may equal the boundary
        return 0 if ratio is None or torch.tensor(steps * sigma).item() >= ratio * steps else 1

    def weight_at(self, sigma: float) -> float:
        return self._weights[self._expert_at(sigma)]

    def conditional_velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        transformer = self.denoisers[self._expert_at(sigma)]
        dtype = compute_dtype(transformer)
        tokens = self.prompts.batch(prompts)["tokens"].to(x.device, dtype)
        self.prepare([one for one in self.denoisers if one is not transformer])
        velocity: Tensor = transformer(
            hidden_states=x.to(dtype),
            # float32, not rounded to integers as in schedulers; one time for all tokens, also of Wan2.2 5B
            timestep=torch.full((len(x),), 1000 * sigma, dtype=torch.float32, device=x.device),
            encoder_hidden_states=tokens,
            return_dict=False,
        )[0]
        return velocity.to(x.dtype)

    def decode(self, x0: Tensor) -> Tensor:
        return decode_causal(self.pipe, x0, self.gradient_checkpointing)


def _guidance_scales(pipe: Any, first: float, second: float | None) -> tuple[float, float]:
    """Return the scales of guidance of both experts; raise TypeError or ValueError if one is not valid."""
    check_number("WanFlow", "guidance_scale", first, 0)
    if second is None:
        return first, first
    check_number("WanFlow", "guidance_scale_2", second, 0)
    if pipe.config.boundary_ratio is None:
        raise ValueError(
            f"WanFlow: guidance_scale_2 must be None for a model with one transformer, got {second:g}"
        )
    return first, second
