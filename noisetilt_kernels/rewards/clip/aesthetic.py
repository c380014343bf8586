"""Aesthetic quality by LAION's predictor on the image embeddings of CLIP. Needs transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionConfig

from ..checkpoint import find_checkpoint
from ..checks import check_batch
from ..loading import load_model, load_preprocessing
from ..registry import default_source
from ..weightless import default_dtype, placed
from .linear_head import linear_head, read_linear_head
from .vision import VisionModel, vision_config

SOURCE = default_source("aesthetic")

PREDICTOR_FILE = "sac+logos+ava1-l14-linearMSE.pth"
"""File of the predictor as published (github.com/christophschuhmann/improved-aesthetic-predictor)."""

CLIP = default_source("clip")
"""Hub id of the CLIP model that the predictor was trained on."""


class AestheticScore:
    """Aesthetic score by LAION's aesthetic predictor V2 (sac+logos+ava1, linear) on CLIP ViT-L/14.

    Most values are from 1 to 10. Prompts are not used. Images (B, 3, H, W) in [0, 1] of any size and B
    prompts -> float32 (B,). The weights are frozen.

    Args:
        source: one of
            - a hub id or folder in the format of transformers: vision model and predictor in one checkpoint;
            - the published predictor, `sac+logos+ava1-l14-linearMSE.pth`, or a folder with this .pth file, or
              ID:FILE, the file on the hub. The CLIP model is in the same folder, else it is loaded from the
              hub (`CLIP`).
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
        found = find_checkpoint("aesthetic", str(source), ".pth")
        clip = str(source)
        if found is not None:  # the predictor alone, or beside a CLIP model
            file = found[0]
            clip = str(file.parent) if (file.parent / "config.json").exists() else CLIP
        config = vision_config("aesthetic", clip, ["aesthetics_predictor"])
        self._preprocess = load_preprocessing(
            "aesthetic",
            clip,
            config.image_size,
            round_crop=found is not None,  # LAION's code crops as OpenAI's, the conversion as Hugging Face
        )
        if found is not None:
            vision: Any = load_model("aesthetic", VisionModel, clip, config, "the whole vision model of CLIP")
            what = f"LAION's linear predictor V2, {PREDICTOR_FILE}"
            predictor = read_linear_head("aesthetic", file, config.projection_dim, "layers.", what)
        else:
            wanted = (
                f"vision model and predictor in one, such as {SOURCE}, or add LAION's {PREDICTOR_FILE} to it"
            )
            vision = load_model("aesthetic", VisionModelWithPredictor, clip, config, wanted)
            predictor = vision.layers
            del vision.layers  # stays float32
        self._predictor = placed(predictor.requires_grad_(False), device)
        self._vision = placed(vision, device, dtype or default_dtype(device))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_batch("aesthetic", images, prompts)
        pixels = self._preprocess(images).to(self._vision.dtype)
        embeddings = self._vision(pixel_values=pixels).image_embeds.float()
        score: Tensor = self._predictor(functional.normalize(embeddings, dim=-1))
        return score[:, 0]


class VisionModelWithPredictor(VisionModel):
    """Vision half and aesthetic predictor, with the names of the published conversion to transformers."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        self.layers = linear_head(config.projection_dim)
        self.post_init()
