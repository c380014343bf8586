"""Probability that Qwen2.5-VL answers a question about an image as wanted. Needs transformers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..checks import check_batch
from ..registry import default_source
from .vlm_question import Question, composite, question_of
from .vqascore import VqaScore

SOURCE = default_source("vlm")


class VisionQuestion(VqaScore):
    """Probability of the wanted answer to a question about an image, with a drawing over it, 0 to 1.

    The value is the probability of the token "Yes" or "No" among all tokens as the first token of the answer,
    as in `VqaScore`. Images (B, 3, H, W) in [0, 1] of any size and B prompts -> float32 (B,); differentiable.
    Prompts are used if the question has {} in their place.

    Args:
        source, device, dtype: see `VqaScore`.
        question: the question and its overlay, or the text that names them, see `question_of`.

    Raises:
        RewardError: the weights or their files are missing or do not match; the message says what to do.
        ValueError: the text names no question.
    """

    name = "vlm"

    def __init__(
        self,
        source: str | Path = SOURCE,
        device: str | torch.device = "cpu",
        question: str | Question = "depth",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.question = question_of(question) if isinstance(question, str) else question
        super().__init__(source, device, dtype, "{}", self.question.answer)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_batch(self.name, images, prompts)
        if self.question.overlay is not None:
            images = composite(images, self.question.overlay)
        return super().__call__(images, [self.question.asked(prompt) for prompt in prompts])
