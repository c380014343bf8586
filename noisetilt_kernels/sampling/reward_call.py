"""Call of a reward. All samplers, sums and runs call rewards here, so that no reward disturbs another."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import warn_once
from .protocols import Reward

_PACKAGE = __name__.partition(".")[0]


def call_reward(caller: str, reward: Reward, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the rewards, float32 (B,), on the device of the images.

    A custom reward gets copies of images and prompts, which it may change. Gradients flow through the copy.
    Bundled rewards change nothing and get no copy. The grad mode that a reward sets ends with the call.

    Args:
        caller: beginning of the errors, such as "ntrk: reward".
        reward: bundled or custom reward.
        images: images (B, 3, H, W) or videos (B, 3, F, H, W).
        prompts: B prompts.

    Raises:
        TypeError, ValueError: the result is not a tensor (B,) of real numbers.
    """
    if not _is_bundled(reward):
        images, prompts = images.clone(), list(prompts)
    with torch.set_grad_enabled(torch.is_grad_enabled()):
        values: Any = reward(images, prompts)
    wanted = f"{caller} must return a tensor ({len(images)},), one number for each image"
    if not isinstance(values, Tensor):
        raise TypeError(f"{wanted}, got {type(values).__name__}")
    if values.shape != (len(images),):
        raise ValueError(f"{wanted}, got {tuple(values.shape)}")
    if values.is_complex():
        raise TypeError(f"{wanted}, got {values.dtype}")
    if values.dtype == torch.float16:
        warn_once(
            f"{caller} returns float16, which has 3 digits and rounds small gradients to zero; compute it in "
            "float32"
        )
    return values.to(images.device, torch.float32)


def _is_bundled(reward: Reward) -> bool:
    return str(getattr(reward, "__module__", "")).partition(".")[0] == _PACKAGE
