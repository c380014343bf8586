"""Human preference by PickScore, a fine-tuned CLIP model. Needs transformers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..registry import default_source
from .image_text import VIT_H_TOKENIZER, ImageTextModel

SOURCE = default_source("pickscore")


class PickScore:
    """PickScore: human preference score of an image for its prompt (Kirstain et al., arXiv 2305.01569).

    The cosine of the embeddings of image and prompt times the model's own scale, which is about 100. Most
    values are from 18 to 24. Images (B, 3, H, W) in [0, 1] of any size and B prompts -> float32 (B,); see
    `ImageTextModel`.

    Args:
        source: folder or hub id of a `CLIPModel`, with its image processor. If it has no tokenizer, the
            tokenizer of PickScore's base model is used (`VIT_H_TOKENIZER`).
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
        self._model = ImageTextModel.load("pickscore", source, (VIT_H_TOKENIZER,), device, dtype)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self._model.scale * self._model.cosines(images, prompts)
