"""SD-Turbo and SDXL-Turbo as models for the samplers."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderTiny,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ..checks import check_choice
from .pipeline import FamilyFacts, OneStepPipelineModel, image_size
from .prompts import Encoded
from .weights import compute_dtype

PROMPT_LENGTH = 77
"""Number of CLIP tokens of a prompt, for pipelines without a tokenizer."""

_LEAST_START = 0.9
"""Least first time that still means pure noise, as a fraction of the number of training times."""

_IMAGE_PROMPT_COMPONENTS = ("feature_extractor", "image_encoder")
"""Components that encode image prompts, which are not supported."""


class SDTurbo(OneStepPipelineModel):
    """A StableDiffusionPipeline as `sampling.OneStepModel`. See `PipelineModel` for how the pipeline is used.

    Latents are (4, H/8, W/8). They are float32 outside of the networks, in any dtype of the networks. Images
    equal, to rounding, those of `pipe(prompt, num_inference_steps=1, guidance_scale=0.0)` without its safety
    checker: there is no guidance, and the one step goes from the scheduler's noise level to zero.

    Args:
        pipe: SD-Turbo, or a model derived from it, with an Euler scheduler, ancestral or not.
        height, width: size of images in pixels, multiples of 8; None is the size in the U-Net's
            configuration, 512.
        gradient_checkpointing, reward_decoder: see `PipelineModel`.

    Raises:
        ValueError, TypeError: an argument is out of its range, the pipeline has no U-Net or no VAE, has
            another scheduler, or is under group offloading.
    """

    facts = FamilyFacts(
        "SD-Turbo",
        StableDiffusionPipeline,
        denoiser="unet",
        unused=(*_IMAGE_PROMPT_COMPONENTS, "safety_checker"),
        tiny=True,
    )

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        *,
        height: int | None = None,
        width: int | None = None,
        gradient_checkpointing: bool | None = None,
        reward_decoder: AutoencoderTiny | None = None,
    ) -> None:
        name = type(self).__name__
        self.check(pipe)
        factor, sample_size = pipe.vae_scale_factor, pipe.unet.config.sample_size
        default = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        size = image_size(name, height, width, (factor * default[0], factor * default[1]), factor)
        shape = (pipe.unet.config.in_channels, *(side // factor for side in size))
        length = (
            PROMPT_LENGTH if pipe.tokenizer is None else min(PROMPT_LENGTH, pipe.tokenizer.model_max_length)
        )
        super().__init__(pipe, shape, length, gradient_checkpointing, reward_decoder)

    @classmethod
    def check_parts(cls, owner: str, pipe: Any) -> None:
        super().check_parts(owner, pipe)
        _single_step(owner, pipe.scheduler)

    def encode_prompt(self, prompt: str) -> Encoded:
        tokens, _ = self.pipe.encode_prompt(prompt, self.device, 1, do_classifier_free_guidance=False)
        return {"tokens": tokens}

    def placeholder_prompt(self) -> Encoded:
        return {"tokens": torch.empty(1, self.prompt_length, self.pipe.unet.config.cross_attention_dim)}

    def denoised(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        self.check_latents("denoised", x, prompts)
        unet, step = self.pipe.unet, _single_step(f"{type(self).__name__}: pipe", self.pipe.scheduler)
        dtype = compute_dtype(unet)
        prompt = {name: tensor.to(x.device, dtype) for name, tensor in self.prompts.batch(prompts).items()}
        self.prepare()
        noisy = step.noise * x
        output: Tensor = unet(
            (noisy / (step.sigma**2 + 1) ** 0.5).to(dtype),
            torch.full((len(x),), step.time, dtype=torch.float32, device=x.device),
            encoder_hidden_states=prompt["tokens"],
            added_cond_kwargs=self.added_conditions(prompt),
            return_dict=False,
        )[0]
        return step.denoised(noisy, output.to(x.dtype))

    def added_conditions(self, prompt: Encoded) -> dict[str, Tensor] | None:
        """Return further inputs of the U-Net, by name, for embeddings (B, ...); None if there are none."""
        return None


class SDXLTurbo(SDTurbo):
    """A StableDiffusionXLPipeline as `sampling.OneStepModel`. See `SDTurbo` for latents and images.

    The size conditions passed to the U-Net are the size of the images, without cropping. Images get no
    watermark.

    Args:
        pipe: SDXL-Turbo, or a model derived from it. Its VAE must not be in float16, in which it overflows.
        height, width, gradient_checkpointing, reward_decoder: see `SDTurbo`.

    Raises:
        ValueError, TypeError: see `SDTurbo`; also if the VAE is in float16.
    """

    facts = FamilyFacts(
        "SDXL-Turbo",
        StableDiffusionXLPipeline,
        denoiser="unet",
        encoders=("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"),
        unused=_IMAGE_PROMPT_COMPONENTS,
        tiny=True,
    )

    @classmethod
    def check(cls, pipe: Any) -> None:
        super().check(pipe)
        if compute_dtype(pipe.vae) == torch.float16 and pipe.vae.config.force_upcast:
            raise ValueError(
                f"{cls.__name__}: pipe must have its VAE in bfloat16 or float32, "
                "as this one overflows in float16"
            )

    def encode_prompt(self, prompt: str) -> Encoded:
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            prompt, device=self.device, do_classifier_free_guidance=False
        )
        return {"tokens": tokens, "pooled": pooled}

    def placeholder_prompt(self) -> Encoded:
        config = self.pipe.unet.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return {**super().placeholder_prompt(), "pooled": torch.empty(1, pooled)}

    def added_conditions(self, prompt: Encoded) -> dict[str, Tensor]:
        pooled = prompt["pooled"]
        height, width = (self.pipe.vae_scale_factor * side for side in self._shape[1:])
        # original size, crop offset, target size; float32, as bfloat16 is exact only for integers up to 256
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=pooled.device)
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}

    def unscaled(self, x0: Tensor) -> Tensor:
        config = self.pipe.vae.config
        if config.get("latents_mean") is None or config.get("latents_std") is None:
            return super().unscaled(x0)
        mean, std = (
            x0.new_tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std)
        )
        return x0 * std / config.scaling_factor + mean


class _SingleStep(NamedTuple):
    """A scheduler's single step, from its first noise level to zero."""

    time: float
    """Timestep passed to the U-Net."""
    sigma: float
    """Noise level: noisy latents are x_0 + sigma eps."""
    noise: float
    """Standard deviation of the initial noise."""
    prediction: str
    """Prediction type of the U-Net: "epsilon", "v_prediction" or "sample"."""

    def denoised(self, noisy: Tensor, output: Tensor) -> Tensor:
        """Compute x_0 from noisy latents and the U-Net's output."""
        if self.prediction == "epsilon":
            return noisy - self.sigma * output
        if self.prediction == "v_prediction":
            scale = self.sigma**2 + 1
            return noisy / scale - self.sigma / scale**0.5 * output
        return output


def _single_step(owner: str, scheduler: Any) -> _SingleStep:
    """Return the single step of an Euler scheduler, which is left unchanged.

    Args:
        owner: subject of messages: the pipeline, or the user's name for the model.
        scheduler: scheduler of the pipeline.

    Raises:
        ValueError: the scheduler is no Euler scheduler, its step does not lead from pure noise to noise level
            zero, or its prediction type is unknown.
    """
    if not isinstance(scheduler, (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler)):
        raise ValueError(
            f"{owner} must have an EulerDiscreteScheduler or EulerAncestralDiscreteScheduler, got "
            f"{type(scheduler).__name__}"
        )
    with unset_fake_temporarily():  # for plan_memory: schedulers compute with numpy
        scheduler = copy.copy(scheduler)  # shallow: set_timesteps replaces tensors
        scheduler.set_timesteps(1)
        (time,), sigmas = scheduler.timesteps.tolist(), scheduler.sigmas.tolist()
        noise = float(scheduler.init_noise_sigma)
    prediction, training_times = scheduler.config.prediction_type, scheduler.config.num_train_timesteps
    if time < _LEAST_START * training_times:
        raise ValueError(
            f"{owner} must have a scheduler whose single step starts at pure noise, near time "
            f"{training_times}, got {time:g} with timestep_spacing {scheduler.config.timestep_spacing!r}; "
            "one-step models have 'trailing', and a model that needs more steps cannot be used"
        )
    if sigmas[-1] != 0:
        raise ValueError(
            f"{owner} must have a scheduler that ends at sigma 0, got {sigmas[-1]:g}; "
            "set its final_sigmas_type to 'zero'"
        )
    check_choice(owner, "prediction_type of the scheduler", prediction, ("epsilon", "v_prediction", "sample"))
    return _SingleStep(time, sigmas[0], noise, prediction)
