"""Weighted sum of rewards."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..sampling import Reward
from ..sampling.protocols import check_reward
from ..sampling.reward_call import call_reward


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
            check_reward("WeightedSum", reward, repr(name))
        self.rewards = dict(rewards)

    def parts(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the values of each reward by name, float32 (B,), not multiplied by the weights.

        Raises:
            TypeError, ValueError: a reward does not return a tensor (B,).
        """
        return {
            name: call_reward(f"WeightedSum: {name!r}", reward, images, prompts)
            for name, (_, reward) in self.rewards.items()
        }

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        parts = self.parts(images, prompts)
        weighted = [weight * parts[name] for name, (weight, _) in self.rewards.items()]
        return sum(weighted[1:], start=weighted[0])
