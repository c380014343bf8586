"""Human preference by HPS v2, a CLIP model fine-tuned to rank images. Needs transformers and ftfy.

    python -m noisetilt_kernels.rewards.clip.hpsv2 HPS_v2.1_compressed.pt FOLDER

converts the published file into a folder that the `CLIPModel` of transformers loads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from ..checkpoint import find_checkpoint, read_checkpoint
from ..checks import RewardError
from ..loading import load_model, load_tokenizer, make_config, model_config
from ..preprocessing import Preprocessing
from ..registry import default_source
from .image_text import VIT_H_TOKENIZER, ImageTextModel
from .open_clip import published_name, to_transformers
from .openai_prompts import clean_prompt

SOURCE = default_source("hpsv2")


class HpsScore:
    """HPS v2: human preference score of an image for its prompt (Wu et al., arXiv 2306.09341).

    The cosine of the embeddings of image and prompt, without the model's scale, as the published
    `hpsv2.score` returns it. The authors' benchmark prints 100 times that value. Most values are from 0.2 to
    0.35. Images (B, 3, H, W) in [0, 1] of any size and B prompts -> float32 (B,); see `ImageTextModel` and
    `WholeImage`.

    Args:
        source: one of
            - the published file, HPS_v2_compressed.pt or HPS_v2.1_compressed.pt, or a folder with one;
            - ID:FILE, such a file on the hub;
            - a folder or hub id of a `CLIPModel`, as written by `convert_hpsv2`.
            If it has no tokenizer, the tokenizer of HPS v2's base model is used (`VIT_H_TOKENIZER`).
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
        model, place = _load(str(source))
        tokenizer = load_tokenizer("hpsv2", [place, VIT_H_TOKENIZER], model.config.text_config.vocab_size)
        preprocess = WholeImage(model.config.vision_config.image_size)
        self._model = ImageTextModel("hpsv2", model, tokenizer, preprocess, device, dtype, clean_prompt)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self._model.cosines(images, prompts)


@dataclass(frozen=True)
class WholeImage:
    """Image processing of HPS v2: images (B, 3, H, W) in [0, 1] of any size -> float32 (B, 3, side, side).

    The longer side is resized to `side` and the shorter in proportion. Black bars fill the rest, and the
    result is normalized. Other CLIP models crop the centre instead; for square images the two are the same.

    The authors resize tensors by torchvision: bicubic with antialiasing, without a clamp, so values overshoot
    [0, 1] at edges. Other rewards resize images of 8 bits by PIL, which clamps.
    """

    side: int

    def __call__(self, images: Tensor) -> Tensor:
        scale = self.side / max(images.shape[2:])
        height, width = (max(round(scale * n), 1) for n in images.shape[2:])
        images = images.float()
        if images.shape[2:] != (height, width):
            images = functional.interpolate(images, size=(height, width), mode="bicubic", antialias=True)
        top, left = (self.side - height) // 2, (self.side - width) // 2
        bottom, right = self.side - height - top, self.side - width - left
        normalize = Preprocessing.from_config({"do_resize": False, "do_center_crop": False})
        return normalize(functional.pad(images, (left, right, top, bottom)))


def convert_hpsv2(checkpoint: str | Path, folder: str | Path) -> None:
    """Write the published file as a `CLIPModel` of transformers, in float32.

    The folder gets config.json and model.safetensors.

    Args:
        checkpoint: HPS_v2_compressed.pt or HPS_v2.1_compressed.pt.
        folder: destination, created if it does not exist.

    Raises:
        RewardError: the file is broken or belongs to another model.
        OSError: the folder cannot be written.
    """
    model = _from_open_clip(Path(checkpoint))
    Path(folder).mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)


def _load(source: str) -> tuple[Any, str]:
    """Return the model, and the folder or hub id it comes from."""
    found = find_checkpoint("hpsv2", source)
    if found is not None:
        file, place = found
        return _from_open_clip(file), place
    config = make_config("hpsv2", source, CLIPConfig, model_config("hpsv2", source, ["clip"]))
    return load_model("hpsv2", CLIPModel, source, config, "a whole CLIP model"), source


def _from_open_clip(file: Path) -> Any:
    config, tensors = to_transformers("hpsv2", file, read_checkpoint("hpsv2", file))
    wanted = "a whole CLIP model of open_clip"
    return load_model(
        "hpsv2", CLIPModel, str(file), config, wanted, tensors=tensors, published_name=published_name
    )


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(checkpoint: Path, folder: Path) -> None:
    """Write the published CHECKPOINT of HPS v2 into FOLDER, in the format of transformers' CLIPModel."""
    try:
        convert_hpsv2(checkpoint, folder)
    except (RewardError, OSError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
