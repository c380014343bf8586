"""Nodes with noise: whitened noise, and the gradient of a reward to make it from."""

import math
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from noisetilt_kernels.sampling import OPERATORS
from noisetilt_kernels.sampling.operators import operator_by_name

from .flow import decoder
from .gradients import explained, load_differentiable
from .rewards import CATEGORY, PROMPT, LoadedReward

OPERATOR = (
    list(OPERATORS),
    {"default": "w", "tooltip": "w: typical noise near the field. Others are parts of w, wgnc, or a scale."},
)


class WhitenedNoise:
    """Value of the type NOISE: sqrt(rho) W(field) + sqrt(1 - rho) eps.

    Attributes:
        seed: seed of eps, which samplers use too.
    """

    def __init__(self, noise: Any, field: Tensor, rho: float, operator: str) -> None:
        self.seed: int = noise.seed
        self._noise, self._field, self._rho, self._operator = noise, field, rho, operator

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """Return the noise for latents, on the CPU, with their shape.

        Raises:
            ValueError: the field has another shape, or a part of it is zero or not finite.
        """
        noise: Tensor = self._noise.generate_noise(input_latent)
        field = self._field
        if field.dim() == noise.dim() - 1:  # an image for a model of videos
            field = field.unsqueeze(2)
        if field.shape[1:] != noise.shape[1:] or len(field) not in (1, len(noise)):
            raise ValueError(
                f"noisetilt: the field of Whitened noise must have the shape of the latents, "
                f"{tuple(noise.shape)}, or one entry of it, got {tuple(field.shape)}; encode an image of the "
                "same size by the model's VAE"
            )
        direction = whitened(field, self._operator).expand_as(noise).to(noise.dtype)
        return math.sqrt(self._rho) * direction + math.sqrt(1 - self._rho) * noise


class WhitenedNoiseNode:
    """Node that mixes noise with whitened latents."""

    CATEGORY, FUNCTION = CATEGORY, "make"
    RETURN_TYPES = ("NOISE",)
    DESCRIPTION = (
        "Noise sqrt(rho) W(field) + sqrt(1 - rho) noise. The field is a latent: an encoded image gives noise "
        "with its layout, a gradient gives noise that points where the reward rises."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs of the node."""
        return {
            "required": {
                "noise": ("NOISE",),
                "field": ("LATENT",),
                "rho": (
                    "FLOAT",
                    {"default": 0.1, "min": 0.0, "max": 1.0, "step": 0.001, "tooltip": "Share of the field."},
                ),
                "operator": OPERATOR,
            }
        }

    def make(self, noise: Any, field: dict[str, Any], rho: float, operator: str) -> tuple[WhitenedNoise]:
        """Return the noise."""
        return (WhitenedNoise(noise, field["samples"], rho, operator),)


class RewardGradientNode:
    """Node with the gradient of a reward in the latents of an image."""

    CATEGORY, FUNCTION = CATEGORY, "differentiate"
    RETURN_TYPES = ("LATENT", "STRING")
    RETURN_NAMES = ("gradient", "scores")
    DESCRIPTION = "Gradient of the reward of the decoded image in its latents, to whiten or to look at."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs of the node."""
        return {
            "required": {
                "latent": ("LATENT",),
                "vae": ("VAE",),
                "reward": ("REWARD",),
                "prompt": PROMPT,
            }
        }

    def differentiate(
        self, latent: dict[str, Any], vae: Any, reward: LoadedReward, prompt: str
    ) -> tuple[dict[str, Any], str]:
        """Return the gradients (B, *shape), one latent after another, and a line with each reward."""
        reward.check(prompt, steers=True)
        samples: Tensor = latent["samples"]
        load_differentiable([vae.patcher], vae.memory_used_decode((1, *samples.shape[1:]), vae.vae_dtype))
        decode, gradients, lines = decoder(vae), [], []
        with torch.inference_mode(False), explained(f"the VAE or the reward {reward.name}"):
            for index, sample in enumerate(samples.split(1)):
                comfy.model_management.throw_exception_if_processing_interrupted()
                leaf = sample.clone().to(vae.device, torch.float32).requires_grad_()
                with torch.enable_grad():
                    score = reward(decode(leaf), [prompt]).sum()
                    (gradient,) = torch.autograd.grad(score, leaf)
                gradients.append(gradient.cpu())
                lines.append(
                    f"image {index}: {reward.name} {score.item():.6g}, gradient {gradient.norm():.3g}"
                )
        return {"samples": torch.cat(gradients)}, "\n".join(lines)


def whitened(field: Tensor, operator: str) -> Tensor:
    """Return the operator's output for latents (B, *shape), float32 on the CPU.

    Raises:
        ValueError: an entry is zero or not finite, or the operator does not take the shape.
    """
    with torch.inference_mode(False), torch.no_grad():
        field = field.detach().to("cpu", torch.float32, copy=True)
        norms = field.flatten(1).norm(dim=1)
        if not bool((norms.isfinite() & (norms > 0)).all()):
            raise ValueError(
                "noisetilt: latents that are zero or not finite have no direction to whiten; connect an "
                "encoded image or a gradient, not an empty latent"
            )
        return operator_by_name("noisetilt", operator, tuple(field.shape[1:]))(field)
