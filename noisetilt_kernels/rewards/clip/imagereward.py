"""Human preference by ImageReward, a BLIP model that reads image and prompt together. Needs transformers."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertTokenizer, BlipConfig, BlipPreTrainedModel, BlipTextModel, BlipVisionModel

from ..checkpoint import count_layers, find_checkpoint, heads_of, read_checkpoint, shape_of
from ..checks import RewardError, check_batch
from ..loading import load_model, load_tokenizer, warn_of_cut
from ..preprocessing import Preprocessing
from ..registry import default_source
from ..weightless import default_dtype, placed
from .linear_head import linear_head

SOURCE = default_source("imagereward")

TOKENIZER = "google-bert/bert-base-uncased"
"""Hub id of BERT. BLIP extends its tokenizer; ImageReward is published without one."""

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Mean and standard deviation of the raw scores in the authors' data; the reward is normalized by them."""

LENGTH = 35
"""Tokens of a prompt, start and end included; longer prompts are truncated."""

HEAD_WIDTH = 64
"""Width of an attention head in both halves of BLIP."""

ADDED_TOKENS = ("[DEC]", "[ENC]")
"""Tokens that BLIP adds to the vocabulary of BERT. ImageReward does not use them."""

_IN_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_IN_BLOCKS = {
    "norm1": "layer_norm1",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


class ImageRewardScore:
    """ImageReward: human preference score of an image for its prompt (Xu et al., arXiv 2304.05977).

    Most values are from -2 to 2; mean and standard deviation over the authors' data are 0 and 1.

    Images (B, 3, H, W) in [0, 1] of any size and B prompts -> float32 (B,). A prompt is truncated to 35
    tokens. The weights are frozen. Images are processed in float32; BLIP and its gradient are
    computed in `dtype`.

    Args:
        source: published file, ImageReward.pt; a folder with this .pt file only; or ID:FILE, the file on the
            hub. If there is no tokenizer beside it, the tokenizer of BERT is used (`TOKENIZER`).
        device: device of the model and of the images.
        dtype: dtype of BLIP; None is bfloat16 on GPUs and float32 on the CPU. The layers after it are
            float32.

    Raises:
        RewardError: the weights or their files are missing or do not match; the message says what to do.
    """

    def __init__(
        self,
        source: str | Path = SOURCE,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        device = torch.device(device)
        found = find_checkpoint("imagereward", str(source))
        if found is None:
            raise RewardError(
                f"imagereward: {source} has no .pt file; name ImageReward.pt, a folder with it, or ID:FILE "
                f"on the Hugging Face hub, such as {SOURCE}"
            )
        file, place = found
        tensors = read_checkpoint("imagereward", file)
        config = _config(file, tensors)
        text: Any = config.text_config
        vision: Any = config.vision_config
        self._tokenizer = load_tokenizer(
            "imagereward", [place, TOKENIZER], text.vocab_size, BertTokenizer, ADDED_TOKENS
        )
        self._preprocess = Preprocessing.from_config(
            {"size": vision.image_size, "crop_size": vision.image_size}, round_crop=True
        )
        model: Any = load_model(
            "imagereward",
            ImageRewardModel,
            str(file),
            config,
            "the whole of ImageReward",
            tensors=dict(_renamed(tensors)),
            published_name=_published_name,
        )
        self._head = placed(model.mlp, device)
        del model.mlp  # stays float32
        self._model = placed(model, device, dtype or default_dtype(device))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_batch("imagereward", images, prompts)
        warn_of_cut("imagereward", self._tokenizer, prompts, LENGTH)
        # padded to a fixed length, so that a prompt has the same bits in every batch
        tokens = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        ).to(images.device)
        pixels = self._preprocess(images).to(self._model.dtype)
        score = self._head(self._model(pixels, tokens.input_ids, tokens.attention_mask).float())
        return (score[:, 0] - MEAN) / STD


class ImageRewardModel(BlipPreTrainedModel):
    """Vision and text half of BLIP, and the layers that turn the text half's output into a score."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.mlp = linear_head(config.text_config.hidden_size)
        self.post_init()

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the first token's embedding (B, width), without the score layers.

        Args:
            pixels: preprocessed images (B, 3, h, w).
            tokens: token numbers (B, L).
            mask: attention mask (B, L).
        """
        seen = self.vision_model(pixel_values=pixels).last_hidden_state
        read = self.text_encoder(input_ids=tokens, attention_mask=mask, encoder_hidden_states=seen)
        embedding: Tensor = read.last_hidden_state[:, 0]
        return embedding


def _config(file: Path, tensors: Mapping[str, Tensor]) -> BlipConfig:
    """Return the configuration of the model with these tensors, named as in the published file."""

    def shape(name: str, dims: int) -> tuple[int, ...]:
        return shape_of("imagereward", file, tensors, f"blip.{name}", dims)

    width, _, patch, _ = shape("visual_encoder.patch_embed.proj.weight", 4)
    _, positions, _ = shape("visual_encoder.pos_embed", 3)
    vocabulary, text_width = shape("text_encoder.embeddings.word_embeddings.weight", 2)
    length, _ = shape("text_encoder.embeddings.position_embeddings.weight", 2)
    side = round((positions - 1) ** 0.5)  # in patches; one position belongs to the class token
    return BlipConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": shape("visual_encoder.blocks.0.mlp.fc1.weight", 2)[0],
            "num_hidden_layers": count_layers(tensors, "blip.visual_encoder.blocks."),
            "num_attention_heads": heads_of("imagereward", file, "the vision half", width, HEAD_WIDTH),
            "image_size": side * patch,
            "patch_size": patch,
            "layer_norm_eps": 1e-6,  # BLIP's value; the default of transformers is 1e-5
        },
        text_config={
            "hidden_size": text_width,
            "intermediate_size": shape("text_encoder.encoder.layer.0.intermediate.dense.weight", 2)[0],
            "num_hidden_layers": count_layers(tensors, "blip.text_encoder.encoder.layer."),
            "num_attention_heads": heads_of("imagereward", file, "the text half", text_width, HEAD_WIDTH),
            "max_position_embeddings": length,
            "vocab_size": vocabulary,
            "is_decoder": True,  # adds cross-attention; attention stays bidirectional
        },
    )


def _renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that `ImageRewardModel` has, under its names."""
    for name, tensor in tensors.items():
        half, _, rest = name.removeprefix("blip.").partition(".")
        if half == "mlp":
            yield f"mlp.{rest.removeprefix('layers.')}", tensor
        elif half == "text_encoder" and not rest.endswith("position_ids"):
            yield f"text_encoder.{rest}", tensor  # same names in transformers
        elif half == "visual_encoder" and rest in _IN_VISION:
            yield f"vision_model.{_IN_VISION[rest]}", tensor
        elif half == "visual_encoder" and (
            block := re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", rest)
        ):
            number, part, kind = block.groups()
            if part in _IN_BLOCKS:
                yield f"vision_model.encoder.layers.{number}.{_IN_BLOCKS[part]}.{kind}", tensor


def _published_name(name: str) -> str:
    """Return the name in the published file of a tensor of `ImageRewardModel`."""
    half, _, rest = name.partition(".")
    if half == "mlp":
        return f"mlp.layers.{rest}"
    if half == "text_encoder":
        return f"blip.{name}"
    block = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", rest)
    if block is None:
        (published,) = (published for published, own in _IN_VISION.items() if own == rest)
        return f"blip.visual_encoder.{published}"
    number, part, kind = block.groups()
    (published,) = (published for published, own in _IN_BLOCKS.items() if own == part)
    return f"blip.visual_encoder.blocks.{number}.{published}.{kind}"
