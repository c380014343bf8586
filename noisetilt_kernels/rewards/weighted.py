"""Weighted sum of rewards."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..sampling import Reward


class WeightedSum:
    """Reward that is the weighted sum of other rewards, bundled or custom: float32 (B,).

    Args:
        rewards: weight and reward by name; at least one.

    Raises:
        ValueError, TypeError: `rewards` is empty, a weight is not a finite number, or a reward is not
            callable.
    """

    def __init__(self, rewards: Mapping[str, tuple[float, Reward]]) -> None:
        if not rewards:
            raise ValueError("WeightedSum: rewards must not be empty")
        for name, (weight, reward) in rewards.items():
            if not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise ValueError(
                    f"WeightedSum: the weight of {name!r} must be a finite number, got {weight!r}"
                )
            if not callable(reward):
                raise TypeError(
                    f"WeightedSum: {name!r} must be callable as reward(images, prompts), got {reward!r}"
                )
        self.rewards = dict(rewards)

    def parts(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the values of each reward by name, float32 (B,), not multiplied by the weights.

        Raises:
            ValueError: a reward returns another shape.
        """
        values = {name: reward(images, prompts) for name, (_, reward) in self.rewards.items()}
        for name, value in values.items():
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            if given != (len(images),):
                raise ValueError(f"WeightedSum: {name!r} must return a tensor ({len(images)},), got {given}")
        return {name: value.float() for name, value in values.items()}

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        parts = self.parts(images, prompts)
        weighted = [weight * parts[name] for name, (weight, _) in self.rewards.items()]
        return sum(weighted[1:], start=weighted[0])
