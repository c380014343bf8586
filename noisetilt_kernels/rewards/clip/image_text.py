"""Rewards by CLIP models: agreement of image and prompt, and human preference. Needs transformers.

Images (B, 3, H, W) in [0, 1] of any size and B prompts -> float32 (B,). The weights are frozen; images are processed in
float32 and go through the model in `dtype`, and so does the gradient. Of longer prompts the first 77 tokens count.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from ..checks import check_batch
from ..loading import default_dtype, load_model, load_preprocessing, load_tokenizer, model_config

VIT_H_TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""Hub id of the base model of PickScore and HPS v2, which are published without a tokenizer."""


class ImageTextModel:
    """Cosines of the embeddings of images and prompts by a CLIP model. A prompt's embedding is kept once it is known.

    Args:
        reward: name for errors.
        model: a frozen `CLIPModel`, in float32; it is moved.
        tokenizer: of the model.
        preprocess: makes images (B, 3, H, W) what the model takes, float32.
        device: of the model, and where images will be.
        dtype: of the model; None is bfloat16 on GPUs and float32 on the CPU.

    Attributes:
        scale: what the model was trained to multiply cosines with.
    """

    def __init__(
        self,
        reward: str,
        model: Any,
        tokenizer: Any,
        preprocess: Callable[[Tensor], Tensor],
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        device = torch.device(device)
        self._preprocess, self._tokenizer = preprocess, tokenizer
        self.scale: float = model.logit_scale.exp().item()  # before it is rounded to dtype, which is seen
        self._model = model.to(device=device, dtype=dtype or default_dtype(device))
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
    ) -> "ImageTextModel":
        """The model of a source.

        Args:
            reward, device, dtype: as of the class.
            source: folder or hub id of a `CLIPModel`, with its tokenizer and image processor.
            tokenizers: sources of the tokenizer if that one has none.

        Raises:
            RewardError: something is missing or does not belong together.
        """
        source = str(source)
        config = CLIPConfig.from_dict(dict(model_config(reward, source, ["clip"])))
        text: Any = config.text_config
        vision: Any = config.vision_config
        preprocess = load_preprocessing(reward, source, vision.image_size)
        tokenizer = load_tokenizer(reward, [source, *tokenizers], text.vocab_size)
        model = load_model(reward, CLIPModel, source, config, "a whole CLIP model")
        return cls(reward, model, tokenizer, preprocess, device, dtype)

    def cosines(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (B, 3, H, W) and B prompts -> (B,), differentiable in the images."""
        check_batch(self._reward, images, prompts)
        pixels = self._preprocess(images).to(self._model.dtype)
        embeddings = _unit(_features(self._model.get_image_features(pixel_values=pixels)))
        return (embeddings * torch.stack([self._text(prompt) for prompt in prompts])).sum(dim=1)

    def _text(self, prompt: str) -> Tensor:
        """Embedding of a prompt, of length 1; by itself, so that it has the same bits in every batch."""
        if prompt not in self._texts:
            tokens = self._tokenizer(prompt, truncation=True, max_length=self._length, return_tensors="pt")
            with torch.no_grad():
                features = self._model.get_text_features(**tokens.to(self._model.device))
                self._texts[prompt] = _unit(_features(features))[0]
        return self._texts[prompt]


def _features(output: object) -> Tensor:
    """The embeddings as transformers 4 returns them, or within an object, as 5 does."""
    features = output if isinstance(output, Tensor) else getattr(output, "pooler_output", None)
    assert isinstance(features, Tensor)
    return features


def _unit(embeddings: Tensor) -> Tensor:
    """Scaled to length 1, in float32."""
    return functional.normalize(embeddings.float(), dim=-1)
