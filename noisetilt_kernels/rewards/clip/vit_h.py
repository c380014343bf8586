"""Configuration of a CLIP ViT-H/14 by the sizes of its tensors, for checkpoints without configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import CLIPConfig

from ..checkpoint import count_layers, heads_of, shape_of

VISION_HEAD_WIDTH, TEXT_HEAD_WIDTH = 80, 64
"""Widths of an attention head in ViT-H/14, which has 16 heads in each half."""


@dataclass(frozen=True)
class SizeNames:
    """Names of the tensors from which the sizes are read.

    Attributes:
        patches: patch embedding, (width, 3, side, side).
        vision_positions, text_positions: position embeddings, (positions, width).
        vision_layers, text_layers: beginnings of the layers' names; a number and a dot follow.
        tokens: token embedding, (tokens, width).
        inner: rest of the name of a layer's first feed-forward weight, (inner, width).
        projection: projection of the image embedding, a matrix.
        embedding: dimension of that matrix that has the size of the embedding.
    """

    patches: str
    vision_positions: str
    vision_layers: str
    tokens: str
    text_positions: str
    text_layers: str
    inner: str
    projection: str
    embedding: int


def vit_h_config(reward: str, file: Path, tensors: Mapping[str, Tensor], names: SizeNames) -> CLIPConfig:
    """Return the configuration of the `CLIPModel` with these tensors.

    Args:
        reward, file: name of the reward and file of the tensors, for errors.
        tensors: weights by name.
        names: names of the tensors that are read.

    Raises:
        RewardError: the tensors belong to another model.
    """

    def shape(name: str, dims: int) -> tuple[int, ...]:
        return shape_of(reward, file, tensors, name, dims)

    width, _, patch, _ = shape(names.patches, 4)
    positions, _ = shape(names.vision_positions, 2)
    vocabulary, text_width = shape(names.tokens, 2)
    length, _ = shape(names.text_positions, 2)
    embedding = shape(names.projection, 2)[names.embedding]
    side = round((positions - 1) ** 0.5)  # in patches; one position belongs to the class token
    return CLIPConfig(
        projection_dim=embedding,
        vision_config={
            "hidden_size": width,
            "intermediate_size": shape(f"{names.vision_layers}0.{names.inner}", 2)[0],
            "num_hidden_layers": count_layers(tensors, names.vision_layers),
            "num_attention_heads": heads_of(reward, file, "the vision half", width, VISION_HEAD_WIDTH),
            "image_size": side * patch,
            "patch_size": patch,
            "hidden_act": "gelu",
            "projection_dim": embedding,
        },
        text_config={
            "hidden_size": text_width,
            "intermediate_size": shape(f"{names.text_layers}0.{names.inner}", 2)[0],
            "num_hidden_layers": count_layers(tensors, names.text_layers),
            "num_attention_heads": heads_of(reward, file, "the text half", text_width, TEXT_HEAD_WIDTH),
            "max_position_embeddings": length,
            "vocab_size": vocabulary,
            # open_clip reads the embedding at the largest token number, the last of the vocabulary
            "eos_token_id": vocabulary - 1,
            "bos_token_id": vocabulary - 2,
            "hidden_act": "gelu",
            "projection_dim": embedding,
        },
    )
