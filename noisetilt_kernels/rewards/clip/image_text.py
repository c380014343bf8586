"""Cosine of the embeddings of image and text by a CLIP model. Needs transformers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from ..checks import check_batch
from ..loading import load_model, load_preprocessing, load_tokenizer, make_config, model_config, warn_of_cut
from ..weightless import default_dtype, placed

VIT_H_TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""Hub id of the base model of PickScore and HPS v2, which are published without a tokenizer."""


class ImageTextModel:
    """CLIP model that returns the cosine of the embeddings of each image and its prompt.

    The weights are frozen. Images are processed in float32; the model and its gradient are computed in
    `dtype`. A prompt is truncated to the length the model was trained with, 77 tokens, and its embedding is
    cached.

    Args:
        reward: name of the reward, for errors.
        model: frozen `CLIPModel` in float32; moved to `device` and `dtype` in place.
        tokenizer: tokenizer of the model.
        preprocess: function from images (B, 3, H, W) in [0, 1] to the model's input, float32.
        device: device of the model and of the images.
        dtype: dtype of the model; None is bfloat16 on GPUs and float32 on the CPU.
        clean: function that prepares a prompt for the tokenizer.

    Attributes:
        scale: factor of the cosines that the model was trained with, float32 ().
    """

    def __init__(
        self,
        reward: str,
        model: Any,
        tokenizer: Any,
        preprocess: Callable[[Tensor], Tensor],
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        clean: Callable[[str], str] = str,
    ) -> None:
        device = torch.device(device)
        self._preprocess, self._tokenizer, self._clean = preprocess, tokenizer, clean
        # read before the model is rounded to dtype, which would change the scale
        self.scale = model.logit_scale.exp().to(device)
        self._model = placed(model, device, dtype or default_dtype(device))
        self._reward, self._length = reward, model.config.text_config.max_position_embeddings
        self._texts: dict[str, Tensor] = {}

    @classmethod
    def load(
        cls,
        reward: str,
        source: str | Path,
        tokenizers: Sequence[str] = (),
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        clean: Callable[[str], str] = str,
        round_crop: bool = False,
    ) -> "ImageTextModel":
        """Load the model from a source.

        Args:
            reward, device, dtype, clean: same as for the class.
            source: folder or hub id of a `CLIPModel`, with its tokenizer and image processor.
            tokenizers: sources to try for the tokenizer if `source` has none.
            round_crop: see `Preprocessing`.

        Raises:
            RewardError: files are missing or do not match.
        """
        source = str(source)
        config = make_config(reward, source, CLIPConfig, model_config(reward, source, ["clip"]))
        text: Any = config.text_config
        vision: Any = config.vision_config
        preprocess = load_preprocessing(reward, source, vision.image_size, round_crop)
        tokenizer = load_tokenizer(reward, [source, *tokenizers], text.vocab_size)
        model = load_model(reward, CLIPModel, source, config, "a whole CLIP model")
        return cls(reward, model, tokenizer, preprocess, device, dtype, clean)

    def cosines(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the cosines, float32 (B,), of images (B, 3, H, W) in [0, 1] and B prompts, with gradient."""
        check_batch(self._reward, images, prompts)
        pixels = self._preprocess(images).to(self._model.dtype)
        embeddings = _unit(self._model.get_image_features(pixel_values=pixels).pooler_output)
        return (embeddings * torch.stack([self._text(prompt) for prompt in prompts])).sum(dim=1)

    def _text(self, prompt: str) -> Tensor:
        """Return the normalized embedding of a prompt, computed alone for equal bits in every batch."""
        if prompt not in self._texts:
            text = self._clean(prompt)
            warn_of_cut(self._reward, self._tokenizer, [text], self._length)
            tokens = self._tokenizer(text, truncation=True, max_length=self._length, return_tensors="pt")
            with torch.no_grad():
                features = self._model.get_text_features(**tokens.to(self._model.device))
                self._texts[prompt] = _unit(features.pooler_output)[0]
        return self._texts[prompt]


def _unit(embeddings: Tensor) -> Tensor:
    """Return the embeddings in float32, divided by their norms."""
    return functional.normalize(embeddings.float(), dim=-1)
