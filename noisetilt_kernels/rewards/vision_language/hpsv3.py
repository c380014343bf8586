"""Human preference by HPSv3, a Qwen2-VL with a regression head. Needs transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2VLConfig

from ..checkpoint import find_checkpoint
from ..checks import RewardError, check_batch
from ..loading import FAILURES, make_config, model_config, unusable
from ..registry import default_source
from ..weightless import default_dtype, placed, read_safetensors
from .hpsv3_prompt import MARK, PROMPT_FILE
from .qwen import Chat, Patches, hidden_at_marks, load_marked_model
from .videoreward_checkpoint import plain_name

SOURCE = default_source("hpsv3")

BASE = "Qwen/Qwen2-VL-7B-Instruct"
"""Hub id of the base model of HPSv3, which is published without configuration and tokenizer."""

TOKENS = 256
"""Number of tokens of a resized image: 256 * 28 * 28 pixels for Qwen2-VL."""

HEAD_LAYERS = ("0", "3", "5")
"""Numbers of the linear layers of the head. A ReLU follows each but the last; 2 is dropout."""


class HpsV3:
    """HPSv3: human preference score of an image for its prompt (Ma et al., arXiv 2508.03789).

    A Qwen2-VL of 7 billion weights reads the image, then a long text that contains the prompt. Three linear
    layers turn the hidden state at a special token into the mean and the uncertainty of the preference. The
    reward is the mean. It is not bounded.

    Images (B, 3, H, W) in [0, 1] of any size and B prompts -> float32 (B,). The weights are frozen. Images
    are processed in float32; the model and its gradient are computed in `dtype`, one image at a time.
    Activations are recomputed in the backward pass.

    Args:
        source: the published file, HPSv3.safetensors; a folder with this .safetensors file only; or ID:FILE,
            the file on the hub.
        device: device of the model and of the images.
        dtype: dtype of the model; None is bfloat16 on GPUs and float32 on the CPU. The head is float32.
        base: folder or hub id of the base model, a Qwen2-VL, for its configuration and tokenizer. None is the
            folder of the file if it has a config.json, else `BASE` on the hub.

    Raises:
        RewardError: the weights or their files are missing or do not match; the message says what to do.
    """

    def __init__(
        self,
        source: str | Path = SOURCE,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        base: str | Path | None = None,
    ) -> None:
        device = torch.device(device)
        found = find_checkpoint("hpsv3", str(source), ".safetensors")
        if found is None:
            raise RewardError(
                f"hpsv3: {source} has no .safetensors file; name HPSv3.safetensors, a folder with it, or "
                f"ID:FILE on the Hugging Face hub, such as {SOURCE}"
            )
        file = found[0]
        if base is None:
            base = file.parent if (file.parent / "config.json").is_file() else BASE
        config: Any = make_config(
            "hpsv3", str(base), Qwen2VLConfig, model_config("hpsv3", str(base), ["qwen2_vl"])
        )
        self._chat = Chat("hpsv3", [str(base)], "image", config.image_token_id, [MARK])
        tensors = _read(file)
        self._head = [
            placed(layer, device) for layer in _take_head(tensors, file, config.text_config.hidden_size)
        ]
        dtype = dtype or default_dtype(device)
        model = load_marked_model("hpsv3", str(file), config, tensors, self._chat, "all of HPSv3", dtype)
        self._model = placed(model, device)
        vision = config.vision_config
        pixels = TOKENS * (vision.patch_size * vision.spatial_merge_size) ** 2
        self._patches = Patches(
            "hpsv3",
            side=vision.patch_size,
            merged=vision.spatial_merge_size,
            frames=vision.temporal_patch_size,
            least=pixels,
            most=pixels,
        )
        self._text = PROMPT_FILE.read_text(encoding="utf-8")

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_batch("hpsv3", images, prompts)
        return torch.stack(
            [self._reward_of(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        )

    def _reward_of(self, image: Tensor, prompt: str) -> Tensor:
        """Return the reward, a scalar, of one image (3, H, W)."""
        pixels, grid = self._patches(image[None])
        _, down, across = self._patches.tokens(grid)
        tokens = self._chat.tokens(self._text.replace("{text_prompt}", prompt), down * across)
        hidden = hidden_at_marks(self._model, self._chat, tokens, pixel_values=pixels, image_grid_thw=grid)
        first, second, last = self._head
        values: Tensor = last(second(first(hidden[0].float()).relu()).relu())
        return values[0]


def _read(file: Path) -> dict[str, Tensor]:
    """Return the tensors of the file by the names of `Qwen2VLModel` of transformers 5."""
    try:
        return {plain_name(name): tensor for name, tensor in read_safetensors(file).items()}
    except FAILURES as error:
        raise unusable("hpsv3", str(file), error) from None


def _take_head(tensors: dict[str, Tensor], file: Path, width: int) -> list[nn.Linear]:
    """Remove the head from the tensors and return its linear layers, float32.

    Raises:
        RewardError: a tensor of the head is missing or has another shape.
    """
    layers = []
    for number, (inner, outer) in zip(HEAD_LAYERS, [(width, 1024), (1024, 16), (16, 2)], strict=True):
        layer = nn.Linear(inner, outer)
        for kind, parameter in layer.named_parameters():
            name = f"rm_head.{number}.{kind}"
            given = tensors.pop(name, None)
            if given is None or given.shape != parameter.shape:
                raise RewardError(
                    f"hpsv3: {file} must hold {name} of shape {tuple(parameter.shape)}, got "
                    f"{None if given is None else tuple(given.shape)}; name HPSv3.safetensors"
                )
            parameter.data = given.float()
        layers.append(layer.requires_grad_(False))
    return layers
