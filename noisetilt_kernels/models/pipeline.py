"""Base classes that adapt diffusers pipelines to the samplers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from torch import Tensor

from ..checks import check_integer, prompt_list
from .offload import check_hooks, execution_device, rewire_offload_hooks
from .prompts import Encoded, PromptCache
from .tiny_decoder import check_tiny
from .weights import compute_dtype, make_differentiable

CHECKPOINTING_THRESHOLD = 100_000_000
"""Gradient checkpointing is the default for denoisers with at least this number of weights."""


@dataclass(frozen=True)
class FamilyFacts:
    """Facts about the pipelines of one family.

    Attributes:
        name: name of the family in messages.
        pipeline: the diffusers pipeline class.
        denoiser: name of the component that is called at every step.
        experts: names of further denoisers that some of the models have, each for a range of times.
        encoders: names of the components that encode prompts.
        optional: names of those that may be missing; the pipeline then encodes prompts without them.
        videos: True if the models make videos, False for images.
        unused: names of components that are not loaded.
        packing: number of latent positions that share one position of the denoiser's input.
        tiny: True if diffusers' AutoencoderTiny can decode the latents.
    """

    name: str
    pipeline: type[DiffusionPipeline]
    denoiser: str = "transformer"
    experts: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ("tokenizer", "text_encoder")
    optional: tuple[str, ...] = ()
    videos: bool = False
    unused: tuple[str, ...] = ()
    packing: int = 1
    tiny: bool = False

    @property
    def needed_encoders(self) -> tuple[str, ...]:
        """Names of the components without which no prompt can be encoded."""
        return tuple(name for name in self.encoders if name not in self.optional)


class PipelineModel(ABC):
    """A diffusers pipeline as a model for the samplers.

    The model uses the pipeline's networks, scheduler and prompt encoding, and its methods have gradients with
    respect to latents. The pipeline is not copied: its networks stay in eval mode and their parameters get no
    gradients. Large models recompute activations in the backward. LoRA, quantisation and, unless a class
    states an exception, VAE tiling and slicing stay as set in the pipeline.

    `enable_model_cpu_offload()` and `enable_sequential_cpu_offload()` both work; the second is much slower.
    With the first, denoiser and VAE stay on the device together until a new prompt has to be encoded.

    A subclass sets `facts`. Its `__init__` calls `check` first, then checks the other arguments, then calls
    this class's `__init__`.

    Args:
        pipe: the pipeline, already checked.
        shape: shape of one latent.
        prompt_length: number of tokens that a prompt is cut or padded to.
        gradient_checkpointing: recompute activations block by block in the backward, which takes a third more
            time and a fraction of the memory; None: only for denoisers of 100 million weights or more.
        reward_decoder: tiny autoencoder such as TAESD, whose decoder makes the images that are judged during
            sampling: those of gradients and of estimates. It takes less memory than the VAE, which still
            makes the finished images. None: the VAE makes all images.
    """

    facts: ClassVar[FamilyFacts]

    def __init__(
        self,
        pipe: Any,
        shape: tuple[int, ...],
        prompt_length: int,
        gradient_checkpointing: bool | None,
        reward_decoder: AutoencoderTiny | None = None,
    ) -> None:
        if reward_decoder is not None:
            self._check_reward_decoder(pipe, reward_decoder, shape[0])
            check_hooks(type(self).__name__, pipe, reward_decoder)
            device = execution_device(getattr(pipe, self.facts.denoiser))
            if execution_device(reward_decoder) != device:
                reward_decoder.to(device)
        self.pipe, self.reward_decoder = pipe, reward_decoder
        self.prompt_length = prompt_length
        # an optional encoder that the pipeline has is needed, too
        optional = [name for name in self.facts.optional if getattr(pipe, name) is None]
        encoders = [name for name in self.facts.encoders if name not in optional]
        self.prompts = PromptCache(type(self).__name__, pipe, encoders, self._encode)
        self._shape = shape
        for component in (*pipe.components.values(), reward_decoder):
            if isinstance(component, torch.nn.Module):
                component.eval().requires_grad_(False)
        for network in self._differentiated:
            make_differentiable(network)
        if gradient_checkpointing is None:
            gradient_checkpointing = self.denoiser.num_parameters() >= CHECKPOINTING_THRESHOLD
        self.set_gradient_checkpointing(gradient_checkpointing)

    @classmethod
    def check(cls, pipe: Any) -> None:
        """Raise TypeError or ValueError unless the model can use the pipeline.

        The pipeline must be of the family's class, with denoiser and VAE that belong together, and without
        hooks that break gradients, see `check_hooks`.
        """
        pipeline, denoiser = cls.facts.pipeline, cls.facts.denoiser
        if not isinstance(pipe, pipeline):
            raise TypeError(
                f"{cls.__name__}: pipe must be a {pipeline.__name__} of diffusers, got {type(pipe).__name__}"
            )
        for name in (denoiser, "vae"):
            if getattr(pipe, name) is None:
                raise ValueError(f"{cls.__name__}: pipe must have a {denoiser} and a VAE, its {name} is None")
        cls.check_index(f"{cls.__name__}: pipe", pipe.config)
        cls.check_parts(f"{cls.__name__}: pipe", pipe)
        if isinstance(pipe.vae, AutoencoderTiny):
            owner = f"{cls.__name__}: the VAE of pipe"
            check_tiny(owner, pipe.vae, pipe.vae.config.latent_channels, pipe.vae_scale_factor)
        check_hooks(f"{cls.__name__}: pipe", pipe)

    @classmethod
    def check_index(cls, owner: str, index: Mapping[str, Any]) -> None:
        """Raise ValueError if model_index.json shows a model that the class cannot use.

        Args:
            owner: subject of the message: the pipeline, or the user's name for the model.
            index: content of model_index.json, or the pipeline's `config`.
        """
        _, vae = index.get("vae") or (None, None)
        if vae == AutoencoderTiny.__name__ and not cls.facts.tiny:
            raise ValueError(
                f"{owner} must have the VAE that {cls.facts.name} was made with, got an {vae}, which cannot "
                "decode its latents"
            )

    @classmethod
    def check_parts(cls, owner: str, pipe: Any) -> None:
        """Raise ValueError if scheduler or configurations show a model that the class cannot use.

        A denoiser with more channels than the latents was made for inpainting, editing or control.

        Args:
            owner: subject of the message: the pipeline, or the user's name for the model.
            pipe: the pipeline, or an object with its scheduler and the `config` of its denoiser and VAE.
        """
        vae = pipe.vae.config
        latents = vae.z_dim if hasattr(vae, "z_dim") else vae.latent_channels
        expected = cls.facts.packing * latents
        for name in (cls.facts.denoiser, *cls.facts.experts):
            denoiser = getattr(pipe, name, None)
            if denoiser is None:
                continue
            config = denoiser.config
            outputs = getattr(config, "out_channels", None)
            if outputs is not None and cls.facts.packing > 1:
                outputs *= config.patch_size**2  # counted for one position of a patch
            channels = config.in_channels, outputs or config.in_channels
            if channels != (expected, expected):
                raise ValueError(
                    f"{owner} must have a {name} with {expected} input and output channels for the {latents} "
                    f"channels of its VAE, got {channels[0]} and {channels[1]}; models for inpainting, "
                    "editing or control are not supported"
                )

    @classmethod
    def _check_reward_decoder(cls, pipe: Any, decoder: Any, channels: int) -> None:
        """Raise TypeError or ValueError unless the reward decoder makes images of the model's latents."""
        owner = f"{cls.__name__}: reward_decoder"
        if not isinstance(decoder, AutoencoderTiny):
            raise TypeError(f"{owner} must be an AutoencoderTiny of diffusers, got {type(decoder).__name__}")
        check_tiny(owner, decoder, channels, pipe.vae_scale_factor)

    @property
    def denoiser(self) -> Any:
        """Transformer or U-Net, called at every step."""
        return getattr(self.pipe, self.facts.denoiser)

    @property
    def denoisers(self) -> list[Any]:
        """The denoiser and, if the model has some, the other experts."""
        experts = [getattr(self.pipe, name) for name in self.facts.experts]
        return [self.denoiser, *(expert for expert in experts if expert is not None)]

    @property
    def _differentiated(self) -> list[Any]:
        """Networks through which gradients are taken."""
        networks = [*self.denoisers, self.pipe.vae, self.reward_decoder]
        return [network for network in networks if network is not None]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one unpacked latent: (C, H, W) for images, (C, F, H, W) for videos."""
        return self._shape

    @property
    def device(self) -> torch.device:
        """Device on which the denoiser computes."""
        return execution_device(self.denoiser)

    @property
    def gradient_checkpointing(self) -> bool:
        """True if activations are recomputed in the backward."""
        return self._gradient_checkpointing

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Choose whether activations are recomputed in the backward (True) or kept (False).

        Another model of the same networks keeps its own choice.
        """
        self._gradient_checkpointing = enabled
        self._apply_checkpointing()

    def _apply_checkpointing(self) -> None:
        for network in self._differentiated:
            enabled = self._gradient_checkpointing
            if not network._supports_gradient_checkpointing or network.is_gradient_checkpointing == enabled:
                continue
            if enabled:
                network.enable_gradient_checkpointing()
            else:
                network.disable_gradient_checkpointing()

    def prepare(self, idle: Sequence[Any] = ()) -> None:
        """Prepare the networks for a call, as another model may have used them since the last one.

        Args:
            idle: denoisers that are not needed for this call, see `rewire_offload_hooks`.
        """
        rewire_offload_hooks(self.pipe, idle, self.reward_decoder)
        self._apply_checkpointing()

    def encode(self, prompts: str | Sequence[str]) -> None:
        """Encode prompts ahead of sampling. Without this call, a prompt is encoded when it is first needed.

        The embeddings are kept. The text encoders, some GB for large models, are then not needed for these
        prompts: setting the pipeline's components to None frees their memory.

        Raises:
            ValueError: the pipeline has no text encoders.
            TypeError: prompts are not strings.
        """
        self.prompts.add(self.needed_prompts(prompt_list(f"{type(self).__name__}.encode", prompts)))

    def needed_prompts(self, prompts: Sequence[str]) -> list[str]:
        """Return the prompts whose embeddings the model needs for images of these prompts."""
        return list(prompts)

    def embeddings(self, prompts: str | Sequence[str]) -> dict[str, Encoded]:
        """Return the embeddings of prompts by prompt, on the CPU. New prompts are encoded.

        With classifier-free guidance, the result has the negative prompt too. It can be saved with
        `torch.save`, and passed to `add_embeddings` of a model without text encoders.

        Raises:
            ValueError: a prompt is new and the pipeline has no text encoders.
            TypeError: prompts are not strings.
        """
        needed = self.needed_prompts(prompt_list(f"{type(self).__name__}.embeddings", prompts))
        return dict(zip(needed, self.prompts.get(needed), strict=True))

    def add_embeddings(self, embeddings: Mapping[str, Encoded]) -> None:
        """Store embeddings of prompts, which are then not encoded.

        Args:
            embeddings: embeddings by prompt, as `embeddings` returns them: the tensors of the model's
                `placeholder_prompt`, with any number of tokens.

        Raises:
            ValueError: a tensor is missing or unknown, or its shape or dtype does not fit the denoiser.
        """
        expected = self.placeholder_prompt()
        for prompt, tensors in embeddings.items():
            self._check_embeddings(f"{type(self).__name__}.add_embeddings", prompt, tensors, expected)
            self.prompts.put(prompt, {name: tensor.detach().cpu() for name, tensor in tensors.items()})

    def _check_embeddings(self, owner: str, prompt: str, tensors: Encoded, expected: Encoded) -> None:
        """Raise ValueError unless the tensors have the expected names, dtypes and shapes.

        Sides of the length `prompt_length` may have any other length, the same for all tensors.
        """
        if tensors.keys() != expected.keys():
            raise ValueError(
                f"{owner}: embeddings of {prompt!r} must be named {', '.join(expected)}, "
                f"got {', '.join(map(str, tensors)) or 'none'}"
            )
        lengths = set()
        for name, like in expected.items():
            tensor, shape = tensors[name], like.shape
            counted = like.ndim > 1 and shape[1] == self.prompt_length
            if counted and tensor.ndim == like.ndim and tensor.shape[1]:
                lengths.add(tensor.shape[1])
                shape = torch.Size((shape[0], tensor.shape[1], *shape[2:]))
            if tensor.shape != shape or tensor.is_floating_point() != like.is_floating_point():
                kind = "floating-point" if like.is_floating_point() else "integer"
                sides = map(str, (shape[0], "tokens", *shape[2:]) if counted else shape)
                raise ValueError(
                    f"{owner}: {name} of {prompt!r} must be {kind} of shape ({', '.join(sides)}), "
                    f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
                )
        if len(lengths) > 1:
            raise ValueError(
                f"{owner}: embeddings of {prompt!r} must have the same number of tokens, "
                f"got {' and '.join(map(str, sorted(lengths)))}"
            )

    def _encode(self, prompt: str) -> Encoded:
        """Encode a prompt; raise ValueError if the text encoders do not belong to the denoiser."""
        encoded = self.encode_prompt(prompt)
        owner = f"{type(self).__name__}: text encoders of pipe must belong to its {self.facts.denoiser}"
        self._check_embeddings(owner, prompt, encoded, self.placeholder_prompt())
        return encoded

    @abstractmethod
    def encode_prompt(self, prompt: str) -> Encoded:
        """Compute the embeddings of one prompt with the pipeline's text encoders; called under `no_grad`."""

    @abstractmethod
    def placeholder_prompt(self) -> Encoded:
        """Return uninitialised tensors of `encode_prompt`'s shapes, to plan memory without encoders."""

    def decode(self, x0: Tensor) -> Tensor:
        """Decode latents x0 (B, *shape) to images (B, 3, H, W) or videos (B, 3, F, H, W) in [0, 1].

        The result has x0's dtype and is differentiable. Values outside [0, 1] are clamped, with the gradient
        of the identity.
        """
        return self._decoded(self.pipe.vae, self.unscaled(x0), x0)

    @property
    def decode_preview(self) -> Callable[[Tensor], Tensor] | None:
        """Function like `decode` that uses the reward decoder; None if the model has none."""
        tiny = self.reward_decoder
        # by its own factors, not those of the VAE
        return None if tiny is None else lambda x0: self._decoded(tiny, _unscaled(x0, tiny.config), x0)

    def _decoded(self, vae: Any, latents: Tensor, like: Tensor) -> Tensor:
        """Decode latents in the scale of the autoencoder to pixels in `like`'s dtype and on its device."""
        self.prepare()
        decoded: Tensor = vae.decode(
            latents.to(execution_device(vae), compute_dtype(vae)), return_dict=False
        )[0]
        return to_pixels(decoded, like)

    def unscaled(self, x0: Tensor) -> Tensor:
        """Return latents x0 (B, *shape) in the scale of the VAE: by its scaling and shift factors."""
        return _unscaled(x0, self.pipe.vae.config)

    def check_latents(self, method: str, x: Tensor, prompts: Sequence[str]) -> None:
        """Raise ValueError unless x is (B, *shape) with B prompts."""
        if x.shape != (len(prompts), *self._shape):
            raise ValueError(
                f"{type(self).__name__}.{method}: x must be {(len(prompts), *self._shape)}, "
                f"one latent for each prompt, got {tuple(x.shape)}"
            )


class FlowPipelineModel(PipelineModel):
    """A pipeline as `sampling.FlowModel`."""

    @abstractmethod
    def sigmas(self, n: int) -> Tensor:
        """Return the pipeline's n + 1 times for n steps, from 1 to 0: float32, on the CPU."""

    @abstractmethod
    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        """Return the velocity v(x, sigma) of latents (B, *shape), in x's dtype; differentiable.

        Raises:
            ValueError: x is not (B, *shape) with B prompts, or a prompt is new and the pipeline has no text
                encoders.
        """


class OneStepPipelineModel(PipelineModel):
    """A pipeline as `sampling.OneStepModel`."""

    @abstractmethod
    def denoised(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return latents (B, *shape) after one step from noise x (B, *shape), in x's dtype; differentiable.

        Raises:
            ValueError: x is not (B, *shape) with B prompts, or a prompt is new and the pipeline has no text
                encoders.
        """

    def generate(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1] after one step from noise x (B, *shape), in x's dtype.

        Differentiable. Same errors as `denoised`.
        """
        return self.decode(self.denoised(x, prompts))


def _unscaled(x0: Tensor, config: Any) -> Tensor:
    """Return latents in the scale of the autoencoder with this configuration."""
    return x0 / config.scaling_factor + (config.get("shift_factor") or 0)


def to_pixels(decoded: Tensor, like: Tensor) -> Tensor:
    """Scale a VAE's output from [-1, 1] to pixels in [0, 1], in the dtype and on the device of `like`.

    Values outside [0, 1] are clamped, with the gradient of the identity. A clamp's gradient is zero there, so
    a reward could not lead such a pixel back.
    """
    clamped: Tensor = _StraightThroughClamp.apply(decoded.to(like) / 2 + 0.5)
    return clamped


class _StraightThroughClamp(torch.autograd.Function):
    """Clamp to [0, 1] whose backward passes the gradient unchanged."""

    @staticmethod
    def forward(context: Any, pixels: Tensor) -> Tensor:
        return pixels.clamp(0, 1)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


def image_size(
    function: str,
    height: int | None,
    width: int | None,
    default: tuple[int, int],
    multiple: int,
    most: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Return the height and width in pixels, or `default` if both are None.

    Args:
        function: name of the model's class, for error messages.
        height, width: size in pixels that the user asks for.
        default: height and width of the model.
        multiple: number of pixels that both sides must be multiples of.
        most: largest height and width, None for no limit.

    Raises:
        ValueError, TypeError: a side is not a positive multiple of `multiple`, or too large, or only one side
            is given.
    """
    size = default[0] if height is None else height, default[1] if width is None else width
    for name, pixels, limit in zip(("height", "width"), size, most or (None, None), strict=True):
        check_integer(function, name, pixels, 1)
        if pixels % multiple:
            below = pixels // multiple * multiple
            nearest = f"{below} and {below + multiple} are" if below else f"{multiple} is"
            raise ValueError(
                f"{function}: {name} must be a multiple of {multiple}, got {pixels}; {nearest} nearest"
            )
        if limit is not None and pixels > limit:
            raise ValueError(
                f"{function}: {name} must be at most {limit}, the last position that the model knows, "
                f"got {pixels}"
            )
    if (height is None) != (width is None):
        raise ValueError(
            f"{function}: height and width must be given together, got height {height} and width {width}"
        )
    return size


def latent_frames(function: str, num_frames: int, factor: int) -> int:
    """Return the number of latent frames of a video: the first one holds one frame, every other one `factor`.

    Args:
        function: name of the model's class, for error messages.
        num_frames: number of frames of the video.
        factor: number of frames of a latent frame.

    Raises:
        ValueError, TypeError: num_frames is not a positive integer of the form factor k + 1.
    """
    check_integer(function, "num_frames", num_frames, 1)
    if (num_frames - 1) % factor:
        below = (num_frames - 1) // factor * factor + 1
        raise ValueError(
            f"{function}: num_frames must be {factor} k + 1, got {num_frames}; "
            f"{below} and {below + factor} are nearest"
        )
    return (num_frames - 1) // factor + 1
