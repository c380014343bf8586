"""Interfaces of models and rewards that the samplers use.

Each entry of a batch has its own prompt: `prompts` is a sequence with one string for each batch entry. A
model of images returns (B, 3, H, W), a model of videos (B, 3, F, H, W). A call of a model must not depend on
earlier calls; a model may cache the encoding of a prompt. Batch entries must not influence one another.

A model may have a second decoder, which takes less memory. Its function `decode_preview(x0)` is like
`decode`, and its images are judged during sampling: gradients, estimates of x_0, iterates of an optimiser.
Finished images, their rewards and the final weights of copies come from `decode`. A one-step model with
`decode_preview` also has `denoised(x, prompts)`, the latents x_0 of noise x, and `decode(x0)`.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from ..checks import shown

Reward: TypeAlias = Callable[[Tensor, Sequence[str]], Tensor]
"""`reward(images, prompts)`: images (B, 3, H, W) with values in [0, 1] and B prompts -> rewards (B,).

Higher is better. The function is differentiable in the images, and no image changes the reward of another
one. Any callable works. A reward of videos (B, 3, F, H, W) has a true attribute `takes_videos`.
"""


@runtime_checkable
class FlowModel(Protocol):
    """A rectified flow: x_t = (1-t) x_0 + t eps, with noise at t = 1 and data at t = 0 (DESIGN section 7).

    Any class with these five members is a FlowModel; it need not inherit from it:

        shape: tuple of int. Shape of one latent, not packed: (N,), (C, H, W) or (C, F, H, W).
        device: torch.device on which the model expects latents.
        sigmas(n): the n + 1 times of n steps, strictly decreasing from exactly 1 to exactly 0.
        velocity(x, sigma, prompts): v = E[eps - x_0 | x_t = x] at time t = sigma, (B, *shape), for x of shape
            (B, *shape) and dtype float32. It is differentiable in x and must not use no_grad itself; the
            samplers call it under no_grad where they need no gradient.
        decode(x0): images (B, 3, H, W), or videos (B, 3, F, H, W), with values in [0, 1], for latents x0 of
            shape (B, *shape) and dtype float32. It is differentiable; clamping to [0, 1] stops the gradient
            where it applies.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one latent, not packed: (N,), (C, H, W) or (C, F, H, W)."""

    @property
    def device(self) -> torch.device:
        """Device on which the model expects latents."""

    def sigmas(self, n: int) -> Tensor:
        """Return the n + 1 times of n steps, strictly decreasing from exactly 1 to exactly 0."""

    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        """Return v = E[eps - x_0 | x_t = x], (B, *shape), at time t = sigma for float32 x (B, *shape)."""

    def decode(self, x0: Tensor) -> Tensor:
        """Return images (B, 3, H, W) or videos (B, 3, F, H, W) in [0, 1] of float32 latents (B, *shape)."""


@runtime_checkable
class OneStepModel(Protocol):
    """A generator that turns noise into an image in one step, as the noise optimisers require.

    Any class with these three members is a OneStepModel; it need not inherit from it:

        shape: tuple of int. Shape of one latent, not packed: (N,), (C, H, W) or (C, F, H, W).
        device: torch.device on which the model expects latents.
        generate(x, prompts): images (B, 3, H, W) with values in [0, 1] for noise x of shape (B, *shape) and
            dtype float32. It is differentiable in x and must not use no_grad itself.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one latent, not packed: (N,), (C, H, W) or (C, F, H, W)."""

    @property
    def device(self) -> torch.device:
        """Device on which the model expects latents."""

    def generate(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1] of float32 noise (B, *shape)."""


def preview_of(model: FlowModel | OneStepModel) -> Callable[[Tensor], Tensor] | None:
    """Return the model's function `decode_preview`, or None for a model without a second decoder."""
    preview: Callable[[Tensor], Tensor] | None = getattr(model, "decode_preview", None)
    return preview


def decoder_of_estimates(model: FlowModel) -> Callable[[Tensor], Tensor]:
    """Return the function that decodes latents during sampling: `decode_preview` if the model has it."""
    return preview_of(model) or model.decode


def check_model(function: str, model: Any, protocol: type[FlowModel] | type[OneStepModel]) -> None:
    """Check that a model has every member of the protocol, and latents that the operators accept.

    Raises:
        TypeError: a member is missing.
        ValueError: the shape of the latents is not valid.
    """
    needed = sorted(name for name in vars(protocol) if not name.startswith("_"))
    if protocol is OneStepModel and preview_of(model) is not None:
        needed += ["decode", "denoised"]
    missing = [name for name in needed if not hasattr(model, name)]
    if missing:
        raise TypeError(
            f"{function}: model must be a {protocol.__name__} with {', '.join(needed)}; "
            f"{type(model).__name__} has no {', '.join(missing)}"
        )
    shape = tuple(model.shape)
    if len(shape) not in (1, 3, 4) or not all(isinstance(n, int) and n > 0 for n in shape):
        # Operators would whiten a batch of (H, W) latents as one sample of B channels.
        raise ValueError(f"{function}: model.shape must be (N,), (C, H, W) or (C, F, H, W), got {shape}")


def check_reward(function: str, reward: Any, name: str = "reward") -> None:
    """Raise TypeError unless the reward can be called with images and prompts.

    Args:
        name: name of the reward in the error.
    """
    wanted = f"{function}: {name} must be callable as reward(images, prompts)"
    if not callable(reward):
        raise TypeError(f"{wanted}, got {shown(reward)}")
    try:
        signature = inspect.signature(reward.forward if isinstance(reward, torch.nn.Module) else reward)
    except (TypeError, ValueError):  # some functions in C have no signature
        return
    try:
        signature.bind("images", "prompts")
    except TypeError:
        raise TypeError(f"{wanted}, got a function with the arguments {signature}") from None
