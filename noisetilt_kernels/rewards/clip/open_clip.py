"""Conversion of a ViT-H/14 of open_clip into a `CLIPModel` of transformers.

Tensors are renamed, the projections are transposed, and the joint q, k and v are split.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor
from transformers import CLIPConfig

from .vit_h import SizeNames, vit_h_config

_SIZES = SizeNames(
    patches="visual.conv1.weight",
    vision_positions="visual.positional_embedding",
    vision_layers="visual.transformer.resblocks.",
    tokens="token_embedding.weight",
    text_positions="positional_embedding",
    text_layers="transformer.resblocks.",
    inner="mlp.c_fc.weight",
    projection="visual.proj",
    embedding=1,
)
_PARTS = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # spelled like this in transformers
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_PROJECTIONS = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
"""Projections, transposed: open_clip multiplies from the right, transformers has linear layers."""

_HALVES = {"visual.transformer.resblocks.": "vision_model", "transformer.resblocks.": "text_model"}
_IN_LAYERS = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def to_transformers(
    reward: str, file: Path, tensors: Mapping[str, Tensor]
) -> tuple[CLIPConfig, dict[str, Tensor]]:
    """Return the configuration and the tensors of the equivalent `CLIPModel`.

    Tensors that the model does not have, such as `attn_mask`, are dropped. A missing tensor is reported when
    the model is loaded.

    Args:
        reward, file: name of the reward and file of the tensors, for errors.
        tensors: weights by the names of open_clip's ViT-H-14; the sizes are read from them.

    Raises:
        RewardError: the tensors belong to another model.
    """
    return vit_h_config(reward, file, tensors, _SIZES), dict(_renamed(tensors))


def _renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if name in _PARTS:
            yield _PARTS[name], tensor
        elif name in _PROJECTIONS:
            yield _PROJECTIONS[name], tensor.T.contiguous()
        elif layer := re.fullmatch(
            rf"({'|'.join(map(re.escape, _HALVES))})(\d+)\.(.+?)[._](weight|bias)", name
        ):
            prefix, number, part, kind = layer.groups()
            layer_name = f"{_HALVES[prefix]}.encoder.layers.{number}"
            if part == "attn.in_proj":
                for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                    yield f"{layer_name}.self_attn.{letter}_proj.{kind}", third.contiguous()
            elif part in _IN_LAYERS:
                yield f"{layer_name}.{_IN_LAYERS[part]}.{kind}", tensor


def published_name(name: str) -> str:
    """Return the name in open_clip of a tensor of the `CLIPModel`."""
    for published, own in {**_PARTS, **_PROJECTIONS}.items():
        if own == name:
            return published
    layer = re.fullmatch(r"(\w+)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer is None:
        return name
    half, number, part, kind = layer.groups()
    (prefix,) = (prefix for prefix, own in _HALVES.items() if own == half)
    if re.fullmatch(r"self_attn\.[qkv]_proj", part):
        return f"{prefix}{number}.attn.in_proj_{kind}"
    (published,) = (published for published, own in _IN_LAYERS.items() if own == part)
    return f"{prefix}{number}.{published}.{kind}"
