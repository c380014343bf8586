"""Reward for the number of objects that a prompt names, and judges of the same number."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ...sampling import Reward
from ...sampling.protocols import check_reward
from ...sampling.reward_call import call_reward
from ..checks import check_batch
from .quantity import Quantity, quantity_of


class Count:
    """Minus the smooth L1 distance of the counted and the wanted number, at most 0.

    With the distance d the reward is -d^2 / 2 for d below 1, and 1/2 - d above. It is differentiable if the
    counter is. Images (B, 3, H, W) in [0, 1] and B prompts -> float32 (B,).

    Args:
        counter: function of images (B, 3, H, W) and B nouns that returns the numbers of objects, (B,). No
            image may change the number of another.
        wanted: number and noun for all images; None reads them from each prompt, see `quantity_of`.

    Raises:
        TypeError: `counter` is not callable.
    """

    name = "count"

    def __init__(self, counter: Reward, wanted: Quantity | None = None) -> None:
        check_reward(self.name, counter, "counter")
        self._counter, self._wanted = counter, wanted

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_batch(self.name, images, prompts)
        wanted = [self._wanted or quantity_of(prompt) for prompt in prompts]
        counts = call_reward(f"{self.name}: counter", self._counter, images, [one.noun for one in wanted])
        return self.score(counts, counts.new_tensor([one.number for one in wanted]))

    def score(self, counts: Tensor, numbers: Tensor) -> Tensor:
        """Return the rewards (B,) of the counted and the wanted numbers (B,)."""
        return -functional.smooth_l1_loss(counts, numbers, reduction="none", beta=1.0)


class CountError(Count):
    """Minus the absolute difference of the counted and the wanted number, at most 0. Without gradient.

    Arguments: see `Count`.
    """

    name = "count-error"

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().__call__(images, prompts)

    def score(self, counts: Tensor, numbers: Tensor) -> Tensor:
        """Return the rewards (B,) of the counted and the wanted numbers (B,)."""
        return -(counts - numbers).abs()


class CountExact(CountError):
    """1 if the counted number, rounded, is the wanted one, else 0. Without gradient.

    The mean over images is an accuracy. Arguments: see `Count`.
    """

    name = "count-exact"

    def score(self, counts: Tensor, numbers: Tensor) -> Tensor:
        """Return the rewards (B,) of the counted and the wanted numbers (B,)."""
        return (counts.round() == numbers).float()
