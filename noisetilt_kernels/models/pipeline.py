"""What every pipeline of diffusers is to the samplers, whatever its architecture."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..checks import check_integer, prompt_list
from .offload import check_offload, execution_device, keep_until_backward
from .prompts import Encoded, PromptCache

LARGE = 100_000_000
"""Weights of a denoiser whose activations are worth the time of computing them twice."""


class PipelineModel(ABC):
    """A pipeline as a model for the samplers: its own networks, scheduler and prompt encoding, with gradients.

    The pipeline is used, not copied: its networks lose their parameters' gradients and stay in eval mode, and those of
    large models recompute activations in the backward. LoRA, quantisation and, unless a class says otherwise, VAE
    tiling and slicing are as set in the pipeline. Both `enable_model_cpu_offload()` and
    `enable_sequential_cpu_offload()` work, the second much slower; with the first, denoiser and VAE stay on the device
    together until a new prompt is to be encoded.

    A class of this kind calls `check` with what it is given before anything else, and `__init__` when the other
    arguments are found to be right.

    Args:
        pipe: checked.
        shape: of one latent.
        prompt_length: tokens that a prompt is cut or padded to.
        gradient_checkpointing: recompute activations block by block in the backward, for a third more time and a
            fraction of the memory; None does so for denoisers of 100 million weights and more.
    """

    pipeline: ClassVar[type[DiffusionPipeline]]
    """What it is made of."""
    denoiser_name: ClassVar[str] = "transformer"
    encoder_names: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder")
    """Components that encode prompts."""

    def __init__(
        self, pipe: Any, shape: tuple[int, ...], prompt_length: int, gradient_checkpointing: bool | None
    ) -> None:
        self.pipe = pipe
        self.prompt_length = prompt_length
        self.prompts = PromptCache(type(self).__name__, pipe, self.encoder_names, self.encode_prompt)
        self._shape = shape
        for component in pipe.components.values():
            if isinstance(component, torch.nn.Module):
                component.eval().requires_grad_(False)
        if gradient_checkpointing is None:
            gradient_checkpointing = self.denoiser.num_parameters() >= LARGE
        self.set_gradient_checkpointing(gradient_checkpointing)

    @classmethod
    def check(cls, pipe: Any) -> None:
        """Raises TypeError or ValueError unless `pipe` is of the class, whole, and not under group offloading."""
        if not isinstance(pipe, cls.pipeline):
            raise TypeError(
                f"{cls.__name__}: pipe must be a {cls.pipeline.__name__} of diffusers, got {type(pipe).__name__}"
            )
        for name in (cls.denoiser_name, "vae"):
            if getattr(pipe, name) is None:
                raise ValueError(
                    f"{cls.__name__}: pipe must have a {cls.denoiser_name} and a VAE, its {name} is None"
                )
        check_offload(cls.__name__, pipe, (cls.denoiser_name, "vae"))

    @property
    def denoiser(self) -> Any:
        """The network that is called at every step."""
        return getattr(self.pipe, self.denoiser_name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one latent, unpacked: (C, H, W), of videos (C, F, H, W)."""
        return self._shape

    @property
    def device(self) -> torch.device:
        """Where the denoiser computes."""
        return execution_device(self.denoiser)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward."""
        return self._gradient_checkpointing

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward, or keep them."""
        self._gradient_checkpointing = enabled
        for network in (self.denoiser, self.pipe.vae):
            if network._supports_gradient_checkpointing:
                if enabled:
                    network.enable_gradient_checkpointing()
                else:
                    network.disable_gradient_checkpointing()

    def encode(self, prompts: str | Sequence[str]) -> None:
        """Encode prompts ahead; otherwise each is encoded when it is first needed.

        Afterwards the text encoders, of large models some GB, are not needed for them any more, and setting the
        pipeline's to None frees their memory.

        Raises:
            ValueError, TypeError: the pipeline has no text encoders; prompts are not strings.
        """
        self.prompts.add(prompt_list(f"{type(self).__name__}.encode", prompts))

    @abstractmethod
    def encode_prompt(self, prompt: str) -> Encoded:
        """What the denoiser needs of one prompt, by the pipeline's text encoders; called under `no_grad`."""

    @abstractmethod
    def blank_prompt(self) -> Encoded:
        """Tensors of the shapes that `encode_prompt` makes, of undefined values: to plan memory without encoders."""

    def decode(self, x0: Tensor) -> Tensor:
        """Images (B, 3, H, W), or videos (B, 3, F, H, W), of latents (B, *shape), in their dtype, in [0, 1].

        Differentiable: values beyond are clamped, and their gradient is passed as if they were not.
        """
        vae = self.pipe.vae
        keep_until_backward(self.pipe)
        latents = x0 / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0)
        decoded: Tensor = vae.decode(latents.to(execution_device(vae), vae.dtype), return_dict=False)[0]
        return in_unit_interval(decoded, x0)

    def check_latents(self, method: str, x: Tensor, prompts: Sequence[str]) -> None:
        """Raises ValueError unless x is (B, *shape) with B prompts."""
        if x.shape != (len(prompts), *self._shape):
            raise ValueError(
                f"{type(self).__name__}.{method}: x must be {(len(prompts), *self._shape)}, one latent for each "
                f"prompt, got {tuple(x.shape)}"
            )


class FlowPipelineModel(PipelineModel):
    """A pipeline as `sampling.FlowModel`."""

    @abstractmethod
    def sigmas(self, n: int) -> Tensor:
        """The n + 1 times that the pipeline has for n steps, float32, on the CPU."""

    @abstractmethod
    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        """v(x, sigma) of latents (B, *shape), in their dtype; differentiable.

        Raises:
            ValueError: x is not (B, *shape) with B prompts, or a new prompt finds no text encoders.
        """


class OneStepPipelineModel(PipelineModel):
    """A pipeline as `sampling.OneStepModel`."""

    @abstractmethod
    def denoised(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        """Latents (B, *shape) of one step from noise (B, *shape), in its dtype; differentiable.

        Raises:
            ValueError: x is not (B, *shape) with B prompts, or a new prompt finds no text encoders.
        """

    def generate(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of one step from noise (B, *shape); differentiable. Raises as `denoised`."""
        return self.decode(self.denoised(x, prompts))


def in_unit_interval(decoded: Tensor, like: Tensor) -> Tensor:
    """What a VAE makes, around [-1, 1], as pixels in [0, 1] of the dtype and on the device of `like`.

    They are clamped, but their gradient is passed as if they were not: a pixel beyond can so be led back, where the
    gradient of a clamp is zero.
    """
    clamped: Tensor = _Clamped.apply(decoded.to(like) / 2 + 0.5)
    return clamped


class _Clamped(torch.autograd.Function):
    """Clamps to [0, 1] and passes the gradient as it is."""

    @staticmethod
    def forward(context: Any, pixels: Tensor) -> Tensor:
        return pixels.clamp(0, 1)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


def check_sides(function: str, sides: Mapping[str, Any], multiple: int) -> None:
    """Raises TypeError or ValueError unless height and width, in pixels, are positive multiples."""
    for name, pixels in sides.items():
        check_integer(function, name, pixels, 1)
        if pixels % multiple:
            below = pixels // multiple * multiple
            nearest = f"{below} and {below + multiple} are" if below else f"{multiple} is"
            raise ValueError(
                f"{function}: {name} must be a multiple of {multiple}, got {pixels}; {nearest} nearest"
            )
