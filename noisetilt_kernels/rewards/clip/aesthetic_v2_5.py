"""Aesthetic quality by Aesthetic Predictor V2.5 on the image embeddings of SigLIP. Needs transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import SiglipConfig, SiglipVisionConfig, SiglipVisionModel

from ..checkpoint import find_checkpoint
from ..checks import RewardError, check_batch
from ..loading import load_model, load_preprocessing, make_config, model_config
from ..registry import default_source
from ..weightless import default_dtype, placed
from .linear_head import read_linear_head

NAME = "aesthetic-v2.5"
SOURCE = default_source(NAME)

PREDICTOR_FILE = "aesthetic_predictor_v2_5.pth"
"""File of the predictor as published (github.com/discus0434/aesthetic-predictor-v2-5)."""

SIGLIP = "google/siglip-so400m-patch14-384"
"""Hub id of the SigLIP model that the predictor was trained on."""


class AestheticV25Score:
    """Aesthetic score by Aesthetic Predictor V2.5: linear layers on SigLIP so400m, patch 14, 384 pixels.

    Values are from 1 to 10; the authors call 5.5 and more a great score. Prompts are not used. Images
    (B, 3, H, W) in [0, 1] of any size and B prompts -> float32 (B,). The whole image is resized to a square,
    as in the authors' code. The weights are frozen.

    Args:
        source: the published predictor, `aesthetic_predictor_v2_5.pth`, a folder with this .pth file, ID:FILE
            on the hub, or its https address. The SigLIP model is in the same folder, else it is loaded from
            the hub (`SIGLIP`).
        device: device of the model and of the images.
        dtype: dtype of the vision model; None is bfloat16 on GPUs and float32 on the CPU. The predictor is
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
        found = find_checkpoint(NAME, str(source), ".pth")
        if found is None:
            raise RewardError(
                f"{NAME}: {source} has no .pth file; name {PREDICTOR_FILE}, or a folder with it and a SigLIP "
                "model"
            )
        file = found[0]
        siglip = str(file.parent) if (file.parent / "config.json").exists() else SIGLIP
        config = _vision_config(siglip)
        self._preprocess = load_preprocessing(
            NAME, siglip, config.image_size, defaults=_defaults(config.image_size)
        )
        predictor = read_linear_head(
            NAME, file, config.hidden_size, "scoring_head.", f"the predictor V2.5, {PREDICTOR_FILE}", last="8"
        )
        self._predictor = placed(predictor, device)
        vision: Any = load_model(NAME, VisionModel, siglip, config, "the whole vision model of SigLIP")
        self._vision = placed(vision, device, dtype or default_dtype(device))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_batch(NAME, images, prompts)
        pixels = self._preprocess(images).to(self._vision.dtype)
        embeddings = self._vision(pixel_values=pixels).pooler_output.float()
        score: Tensor = self._predictor(functional.normalize(embeddings, dim=-1))
        return score[:, 0]


class VisionModel(SiglipVisionModel):
    """Vision half of a SigLIP model; the checkpoint may hold the text half as well."""

    _keys_to_ignore_on_load_unexpected: set[str] | list[str] | None = [  # noqa: RUF012, as in transformers
        r"^text_model\.",
        "^logit_(scale|bias)$",
        "position_ids",
    ]


def _vision_config(source: str) -> Any:
    """Return the vision configuration of a source that holds a whole SigLIP model or its vision half."""
    config = model_config(NAME, source, ["siglip", "siglip_vision_model"])
    if config["model_type"] == "siglip_vision_model":
        return make_config(NAME, source, SiglipVisionConfig, config)
    return make_config(NAME, source, SiglipConfig, config).vision_config


def _defaults(side: int) -> dict[str, Any]:
    """Return the values of SigLIP's image processor: the whole image, not its centre."""
    half = (0.5, 0.5, 0.5)
    return {
        "size": {"height": side, "width": side},
        "do_center_crop": False,
        "image_mean": half,
        "image_std": half,
    }
