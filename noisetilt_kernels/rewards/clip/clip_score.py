"""Agreement of image and prompt by CLIP. Needs transformers and ftfy."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..registry import default_source
from .image_text import ImageTextModel
from .openai_prompts import clean_prompt

SOURCE = default_source("clip")


class ClipScore:
    """CLIP score: 100 times the cosine of image and prompt (Hessel et al., arXiv 2104.08718).

    Most values are from 10 to 35. Negative values are kept, unlike in the paper, because the gradient
    vanishes where a value is set to 0. Prompts are cleaned and images cropped as in OpenAI's code.

    Images (B, 3, H, W) in [0, 1] of any size and B prompts -> float32 (B,); see `ImageTextModel`.

    Args:
        source: folder or hub id of a `CLIPModel`, with its tokenizer and image processor.
        device: device of the model and of the images.
        dtype: dtype of the model; None is bfloat16 on GPUs and float32 on the CPU.

    Raises:
        RewardError: the weights or their files are missing or do not match; the message says what to do.
    """

    def __init__(
        self,
        source: str | Path = SOURCE,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        self._model = ImageTextModel.load(
            "clip", source, (), device, dtype, clean=clean_prompt, round_crop=True
        )

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return 100 * self._model.cosines(images, prompts)
