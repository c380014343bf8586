"""Classifier-free guidance, for flows that have it."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..checks import check_number
from .pipeline import FlowPipelineModel


class GuidedFlow(FlowPipelineModel):
    """A flow whose velocity is led away from that of a negative prompt: v(negative) + weight (v(prompt) - v(negative)).

    That takes two passes through the denoiser for one velocity; at a weight of 1 there is one pass and no guidance.

    Args:
        weight: at least 0; below 1 it is taken for 1.
        negative_prompt: checked.

    The others are those of `PipelineModel`.
    """

    def __init__(
        self,
        pipe: Any,
        shape: tuple[int, ...],
        prompt_length: int,
        gradient_checkpointing: bool | None,
        *,
        weight: float,
        negative_prompt: str,
    ) -> None:
        self._weight, self._negative_prompt = float(weight), negative_prompt
        super().__init__(pipe, shape, prompt_length, gradient_checkpointing)

    @classmethod
    def check_guidance(cls, guidance_scale: Any, negative_prompt: Any) -> None:
        """Raises TypeError or ValueError unless they are a number of at least 0 and a string."""
        check_number(cls.__name__, "guidance_scale", guidance_scale, 0)
        if not isinstance(negative_prompt, str):
            raise TypeError(f"{cls.__name__}: negative_prompt must be a string, got {negative_prompt!r}")

    @property
    def guided(self) -> bool:
        """Whether there is guidance."""
        return self._weight > 1

    def encode(self, prompts: str | Sequence[str]) -> None:
        super().encode(prompts)
        if self.guided:
            super().encode(self._negative_prompt)

    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        self.check_latents("velocity", x, prompts)
        towards = self.unguided(x, sigma, prompts)
        if not self.guided:
            return towards
        away = self.unguided(x, sigma, [self._negative_prompt] * len(prompts))
        return away + self._weight * (towards - away)

    @abstractmethod
    def unguided(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        """The velocity of one pass; arguments and result are those of `velocity`, and checked."""
