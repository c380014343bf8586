"""What the samplers ask of a model and of a reward.

Every entry of a batch has a prompt of its own, so prompts travel with the batch: `prompts` is a sequence of as many
strings as the batch has entries. Where a model makes videos, they are (B, 3, F, H, W), and so is what is said of images
(B, 3, H, W) here and elsewhere. A model keeps no state between calls; encoding each distinct prompt once, and keeping
what came out, is its own business. Batch entries must not influence one another.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

Reward: TypeAlias = Callable[[Tensor, Sequence[str]], Tensor]
"""`reward(images, prompts)`: images (B, 3, H, W) with values in [0, 1] and B prompts -> (B,), higher is better.

It is differentiable in the images, and no image changes the reward of another. It may be any callable. One of videos
(B, 3, F, H, W) has an attribute `takes_videos` that is true.
"""


@runtime_checkable
class FlowModel(Protocol):
    """A rectified flow: x_t = (1-t) x_0 + t eps, with t = 1 noise and t = 0 data (DESIGN section 7)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one latent, unpacked: (N,), (C, H, W) or (C, F, H, W)."""

    @property
    def device(self) -> torch.device:
        """Where latents are expected."""

    def sigmas(self, n: int) -> Tensor:
        """The n + 1 times of n steps, strictly decreasing from exactly 1 to exactly 0."""

    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        """v = E[eps - x_0 | x_t = x] at time t = sigma.

        x: float32 (B, *shape). Returns (B, *shape), differentiable in x. Called under `no_grad` wherever no gradient
        is needed; it must not be under a `no_grad` of its own.
        """

    def decode(self, x0: Tensor) -> Tensor:
        """Latents (B, *shape), float32 -> images (B, 3, H, W) with values in [0, 1], differentiable.

        Clamping to [0, 1] stops the gradient wherever it applies.
        """


@runtime_checkable
class OneStepModel(Protocol):
    """A generator that turns noise into an image at once, as WGNC optimises."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one latent, unpacked: (N,), (C, H, W) or (C, F, H, W)."""

    @property
    def device(self) -> torch.device:
        """Where latents are expected."""

    def generate(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        """Noise (B, *shape), float32 -> images (B, 3, H, W) with values in [0, 1], differentiable."""


def check_model(function: str, model: Any, protocol: type[FlowModel] | type[OneStepModel]) -> None:
    """Raises unless `model` has every member of `protocol`, and latents of a shape that the operators take."""
    needed = sorted(name for name in vars(protocol) if not name.startswith("_"))
    missing = [name for name in needed if not hasattr(model, name)]
    if missing:
        raise TypeError(
            f"{function}: model must be a {protocol.__name__} with {', '.join(needed)}; "
            f"{type(model).__name__} has no {', '.join(missing)}"
        )
    shape = tuple(model.shape)
    if len(shape) not in (1, 3, 4) or not all(isinstance(n, int) and n > 0 for n in shape):
        # a batch of (H, W) latents would be whitened as one sample of B channels
        raise ValueError(f"{function}: model.shape must be (N,), (C, H, W) or (C, F, H, W), got {shape}")


def check_reward(function: str, reward: Any) -> None:
    """Raises unless `reward` can be called."""
    if not callable(reward):
        raise TypeError(f"{function}: reward must be callable as reward(images, prompts), got {reward!r}")
