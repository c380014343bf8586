"""Classifier-free guidance for flows."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from diffusers import AutoencoderTiny
from torch import Tensor

from ..checks import check_number
from .pipeline import FlowPipelineModel


class GuidedFlow(FlowPipelineModel):
    """A flow with classifier-free guidance: v = v(negative) + weight (v(prompt) - v(negative)).

    A guided velocity takes two passes through the denoiser. At a weight of 1 there is one pass and no
    guidance.

    Args:
        pipe, shape, prompt_length, gradient_checkpointing, reward_decoder: see `PipelineModel`.
        weight: weight of guidance, at least 0, the largest one of all times; values below 1 act as 1.
        negative_prompt: prompt that guidance leads away from; a string.
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
        reward_decoder: AutoencoderTiny | None = None,
    ) -> None:
        self._weight, self._negative_prompt = float(weight), negative_prompt
        super().__init__(pipe, shape, prompt_length, gradient_checkpointing, reward_decoder)

    @classmethod
    def check_guidance(
        cls, scale: Any, negative_prompt: Any, name: str = "guidance_scale", no_effect: float = 1
    ) -> None:
        """Check the arguments for guidance.

        Args:
            scale: scale of guidance, a number >= 0.
            negative_prompt: a string.
            name: name of the argument for the scale.
            no_effect: largest scale that has no effect.

        Raises:
            TypeError, ValueError: an argument is of another type or out of its range, or there is a negative
                prompt without guidance.
        """
        check_number(cls.__name__, name, scale, 0)
        if not isinstance(negative_prompt, str):
            raise TypeError(f"{cls.__name__}: negative_prompt must be a string, got {negative_prompt!r}")
        if negative_prompt.strip() and scale <= no_effect:
            raise ValueError(
                f"{cls.__name__}: negative_prompt has no effect without guidance; {name} must be above "
                f"{no_effect:g}, got {scale:g}"
            )

    @property
    def guided(self) -> bool:
        """True if guidance has an effect at some time."""
        return self._weight > 1

    def needed_prompts(self, prompts: Sequence[str]) -> list[str]:
        return [*prompts, self._negative_prompt] if self.guided else list(prompts)

    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        self.check_latents("velocity", x, prompts)
        self.prompts.add(self.needed_prompts(prompts))  # both, before the denoiser is on the device
        positive, weight = self.conditional_velocity(x, sigma, prompts), self.weight_at(sigma)
        if weight <= 1:
            return positive
        negative = self.conditional_velocity(x, sigma, [self._negative_prompt] * len(prompts))
        return self.rescaled(negative + weight * (positive - negative), positive)

    def weight_at(self, sigma: float) -> float:
        """Return the weight of guidance at a time; by default it is the same at all times."""
        return self._weight

    def rescaled(self, guided: Tensor, positive: Tensor) -> Tensor:
        """Return a guided velocity after the family's rescaling; by default there is none.

        Args:
            guided: guided velocity (B, *shape).
            positive: velocity without guidance, of the same shape.
        """
        return guided

    @abstractmethod
    def conditional_velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        """Velocity of one pass, given the prompts, without guidance.

        Arguments and result are the same as for `velocity`; the arguments are already checked.
        """
