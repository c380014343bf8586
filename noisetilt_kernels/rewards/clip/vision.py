"""Vision half of a CLIP model, and embeddings of images by it. Needs transformers."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPVisionConfig, CLIPVisionModelWithProjection

from ..loading import load_model, load_preprocessing, make_config, model_config
from ..registry import default_source
from ..weightless import default_dtype, placed

SOURCE = default_source("clip")


class VisionModel(CLIPVisionModelWithProjection):
    """Vision half of a CLIP model; the checkpoint may hold the text half as well."""

    _keys_to_ignore_on_load_unexpected: set[str] | list[str] | None = [  # noqa: RUF012, as in transformers
        r"^text_(model|projection)\.",
        "^logit_scale$",
        "position_ids",
    ]


def vision_config(reward: str, source: str, others: Collection[str] = ()) -> Any:
    """Return the vision configuration of a source that holds a whole CLIP model or its vision half.

    Args:
        reward: name of the reward, for errors.
        source: folder or hub id.
        others: other model types that the source may have.

    Raises:
        RewardError: see `model_config`.
    """
    config = dict(model_config(reward, source, ["clip", "clip_vision_model", *others]))
    if config["model_type"] != "clip":
        config["model_type"] = "clip_vision_model"
        return make_config(reward, source, CLIPVisionConfig, config)
    both = make_config(reward, source, CLIPConfig, config)
    vision: Any = both.vision_config
    vision.projection_dim = both.projection_dim
    return vision


class ClipEmbedding:
    """Embeddings of images by CLIP: images (B, 3, H, W) in [0, 1] of any size -> float32 (B, width).

    The weights are those of the reward `clip`, and images are cropped as for it. Embeddings are not scaled to
    a length of 1.

    Args:
        source: folder or hub id of a CLIP model or its vision half, with its image processor.
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
        device, place = torch.device(device), str(source)
        config = vision_config("clip", place)
        self._preprocess = load_preprocessing("clip", place, config.image_size, round_crop=True)
        vision: Any = load_model("clip", VisionModel, place, config, "the whole vision model of CLIP")
        self._vision = placed(vision, device, dtype or default_dtype(device))

    def __call__(self, images: Tensor) -> Tensor:
        pixels = self._preprocess(images).to(self._vision.dtype)
        embeddings: Tensor = self._vision(pixel_values=pixels).image_embeds
        return embeddings.float()
