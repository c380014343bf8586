"""Checks of the arguments of rewards, and the error of rewards that cannot be loaded."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ..checks import NoisetiltError, shown

OVERSHOOT = 0.5
"""Distance from [0, 1] that is allowed for values of images, such as the overshoot of a decoder."""


class RewardError(NoisetiltError):
    """A reward cannot be loaded. The message says what is wrong, and what to do."""


def first_of(names: Sequence[str]) -> str:
    """Return the first name, and how many more there are, as a part of a sentence."""
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for the error of an allocation that failed, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def check_batch(reward: str, images: Any, prompts: Any) -> None:
    """Raise TypeError or ValueError unless `images` is floating-point (B, 3, H, W) with B prompts.

    The values must lie in [0, 1], up to an overshoot of `OVERSHOOT`. NaN and infinity pass.
    """
    _check(reward, "images", ("B", "3", "H", "W"), images, prompts)


def check_videos(reward: str, videos: Any, prompts: Any) -> None:
    """Raise TypeError or ValueError unless `videos` is floating-point (B, 3, F, H, W) with B prompts."""
    _check(reward, "videos", ("B", "3", "F", "H", "W"), videos, prompts)


def _check(reward: str, name: str, dims: Sequence[str], given: Any, prompts: Any) -> None:
    if not isinstance(given, Tensor) or not given.is_floating_point():
        kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(f"{reward}: {name} must be a floating-point tensor with values in [0, 1], got {kind}")
    if given.ndim != len(dims) or given.shape[1] != 3 or 0 in given.shape[2:]:
        raise ValueError(f"{reward}: {name} must be ({', '.join(dims)}), got {tuple(given.shape)}")
    if (
        isinstance(prompts, str)
        or not isinstance(prompts, Sequence)
        or not all(isinstance(p, str) for p in prompts)
    ):
        raise TypeError(
            f"{reward}: prompts must be a sequence of strings, one for each of the {name}, got "
            f"{shown(prompts)}"
        )
    if len(prompts) != len(given):
        raise ValueError(
            f"{reward}: needs one prompt for each of the {len(given)} {name}, got {len(prompts)}"
        )
    if len(given) == 0 or isinstance(given, FakeTensor):  # the plan of memory computes without values
        return
    lowest, highest = torch.stack(given.detach().aminmax()).tolist()  # NaN if one value is NaN
    if -math.inf < lowest < -OVERSHOOT or 1 + OVERSHOOT < highest < math.inf:
        raise ValueError(
            f"{reward}: {name} must have values in [0, 1], got {lowest:.4g} to {highest:.4g}; divide "
            "0 to 255 by 255, and map -1 to 1 to [0, 1]"
        )
