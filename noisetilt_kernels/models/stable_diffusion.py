"""SD-Turbo and SDXL-Turbo of diffusers as models for the samplers."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ..checks import check_choice
from .offload import keep_until_backward
from .pipeline import OneStepPipelineModel, check_sides
from .prompts import Encoded

PROMPT_LENGTH = 77
"""Tokens of CLIP, if there is no tokenizer to be asked."""


class SDTurbo(OneStepPipelineModel):
    """A StableDiffusionPipeline as `sampling.OneStepModel`; what it does with the pipeline is as of `PipelineModel`.

    Latents are (4, H, W), float32 outside of the networks whatever dtype those are in. The images are those of
    `pipe(prompt, num_inference_steps=1, guidance_scale=0.0)`, to rounding, but for its safety checker, which is not
    asked: there is no guidance, and the one step goes from the scheduler's noise level to none.

    Args:
        pipe: SD-Turbo, or made of it; its scheduler is an Euler one, ancestral or not.
        height, width: of images, in pixels, multiples of 8; None is the size that the U-Net was made for, 512.
        gradient_checkpointing: as of `PipelineModel`.

    Raises:
        ValueError, TypeError: an argument out of its range; a pipeline without U-Net or VAE, with another scheduler, or
            under group offloading.
    """

    pipeline = StableDiffusionPipeline
    denoiser_name = "unet"

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        gradient_checkpointing: bool | None = None,
    ) -> None:
        name = type(self).__name__
        self.check(pipe)
        _first_step(name, pipe.scheduler)
        size = pipe.unet.config.sample_size
        default = [pipe.vae_scale_factor * side for side in ([size, size] if isinstance(size, int) else size)]
        sides = {
            "height": default[0] if height is None else height,
            "width": default[1] if width is None else width,
        }
        check_sides(name, sides, pipe.vae_scale_factor)
        shape = (pipe.unet.config.in_channels, *(side // pipe.vae_scale_factor for side in sides.values()))
        length = (
            PROMPT_LENGTH if pipe.tokenizer is None else min(PROMPT_LENGTH, pipe.tokenizer.model_max_length)
        )
        super().__init__(pipe, shape, length, gradient_checkpointing)

    def encode_prompt(self, prompt: str) -> Encoded:
        tokens, _ = self.pipe.encode_prompt(prompt, self.device, 1, do_classifier_free_guidance=False)
        return {"tokens": tokens}

    def blank_prompt(self) -> Encoded:
        return {"tokens": torch.empty(1, self.prompt_length, self.pipe.unet.config.cross_attention_dim)}

    def denoised(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        self.check_latents("denoised", x, prompts)
        unet, step = self.pipe.unet, _first_step(type(self).__name__, self.pipe.scheduler)
        prompt = {
            name: tensor.to(x.device, unet.dtype) for name, tensor in self.prompts.batch(prompts).items()
        }
        keep_until_backward(self.pipe)
        noisy = step.noise * x
        output: Tensor = unet(
            (noisy / (step.sigma**2 + 1) ** 0.5).to(unet.dtype),
            torch.full((len(x),), step.time, dtype=torch.float32, device=x.device),
            encoder_hidden_states=prompt["tokens"],
            added_cond_kwargs=self.conditions(prompt),
            return_dict=False,
        )[0]
        return step.denoised(noisy, output.to(x.dtype))

    def conditions(self, prompt: Encoded) -> dict[str, Tensor] | None:
        """What else the U-Net is given, for prompts (B, ...)."""
        return None


class SDXLTurbo(SDTurbo):
    """A StableDiffusionXLPipeline as `sampling.OneStepModel`; all else as of `SDTurbo`.

    The U-Net is told that the images have the size that they have, and are not cropped. No watermark is put into them.

    Args:
        pipe: SDXL-Turbo, or made of it, with its VAE in another dtype than float16, in which it overflows.
        height, width, gradient_checkpointing: as of `SDTurbo`.

    Raises:
        ValueError, TypeError: as of `SDTurbo`; the VAE is in float16.
    """

    pipeline = StableDiffusionXLPipeline
    encoder_names = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")

    @classmethod
    def check(cls, pipe: Any) -> None:
        super().check(pipe)
        if pipe.vae.dtype == torch.float16 and pipe.vae.config.force_upcast:
            raise ValueError(
                f"{cls.__name__}: pipe must have its VAE in bfloat16 or float32, as this one overflows in float16"
            )

    def encode_prompt(self, prompt: str) -> Encoded:
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            prompt, device=self.device, do_classifier_free_guidance=False
        )
        return {"tokens": tokens, "pooled": pooled}

    def blank_prompt(self) -> Encoded:
        config = self.pipe.unet.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return {**super().blank_prompt(), "pooled": torch.empty(1, pooled)}

    def conditions(self, prompt: Encoded) -> dict[str, Tensor]:
        pooled = prompt["pooled"]
        height, width = (self.pipe.vae_scale_factor * side for side in self._shape[1:])
        # the size it had, where it was cropped, the size it has; float32, as bfloat16 has integers up to 256 only
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=pooled.device)
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}

    def decode(self, x0: Tensor) -> Tensor:
        config = self.pipe.vae.config
        if config.latents_mean is None or config.latents_std is None:
            return super().decode(x0)
        mean, std = (
            x0.new_tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std)
        )
        return super().decode(x0 * std + mean * config.scaling_factor)


class _FirstStep(NamedTuple):
    """What a scheduler makes of a first step that is the last one as well."""

    time: float
    """That the U-Net is told."""
    sigma: float
    """Noise level, where noisy latents are x_0 + sigma eps."""
    noise: float
    """Standard deviation of what a trajectory starts from."""
    prediction: str
    """What the U-Net's output is."""

    def denoised(self, noisy: Tensor, output: Tensor) -> Tensor:
        """x_0 of noisy latents and the U-Net's output."""
        if self.prediction == "epsilon":
            return noisy - self.sigma * output
        if self.prediction == "v_prediction":
            scale = self.sigma**2 + 1
            return noisy / scale - self.sigma / scale**0.5 * output
        return output


def _first_step(function: str, scheduler: Any) -> _FirstStep:
    """The scheduler is left as it is.

    Raises:
        ValueError: it is no Euler scheduler, its one step does not end without noise, or it predicts something else.
    """
    if not isinstance(scheduler, (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler)):
        raise ValueError(
            f"{function}: pipe must have an EulerDiscreteScheduler or EulerAncestralDiscreteScheduler, got "
            f"{type(scheduler).__name__}"
        )
    with unset_fake_temporarily():  # for plan_memory: schedulers compute with numpy
        scheduler = copy.copy(
            scheduler
        )  # shallow, as set_timesteps puts new tensors in the place of old ones
        scheduler.set_timesteps(1)
        (time,), sigmas = scheduler.timesteps.tolist(), scheduler.sigmas.tolist()
        noise = float(scheduler.init_noise_sigma)
    prediction = scheduler.config.prediction_type
    if sigmas[-1] != 0:
        raise ValueError(
            f"{function}: pipe's scheduler must end at sigma 0, got {sigmas[-1]:g}; see final_sigmas_type"
        )
    check_choice(
        function, "prediction_type of pipe's scheduler", prediction, ("epsilon", "v_prediction", "sample")
    )
    return _FirstStep(time, sigmas[0], noise, prediction)
