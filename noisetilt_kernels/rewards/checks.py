"""What rewards ask of their arguments and of the files that they are loaded from."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


class RewardError(Exception):
    """A reward could not be loaded; the message is one sentence with the way out."""


def check_batch(reward: str, images: Any, prompts: Any) -> None:
    """Raises unless `images` is a floating-point (B, 3, H, W) and `prompts` has B strings.

    What the images hold is not looked at: that would wait for the device, at every step.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        given = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"{reward}: images must be a floating-point tensor with values in [0, 1], got {given}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"{reward}: images must be (B, 3, H, W), got {tuple(images.shape)}")
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not all(isinstance(p, str) for p in prompts):
        raise TypeError(f"{reward}: prompts must be a sequence of strings, one for each image, got {prompts!r}")
    if len(prompts) != len(images):
        raise ValueError(f"{reward}: prompts must be as many as the {len(images)} images, got {len(prompts)}")
