"""Human preference by MPS, a CLIP model with cross-attention and a condition. Needs transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from ..checkpoint import count_layers, find_checkpoint, read_module, shape_of
from ..checks import RewardError, check_batch
from ..loading import FAILURES, load_model, load_tokenizer, unusable, warn_of_cut
from ..preprocessing import Preprocessing
from ..registry import default_source
from ..weightless import default_dtype, placed, read_safetensors
from .cross_attention import CrossLayer, SelfLayer
from .image_text import VIT_H_TOKENIZER
from .vit_h import SizeNames, vit_h_config

SOURCE = default_source("mps")

OVERALL = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, "
    "instance, texture, quantity, attributes, position, number, location, word, things."
)
"""Condition of the overall preference, for which the weights are published."""

THRESHOLD = 0.01
"""Limit of the similarity to the condition, relative to the largest one, for tokens that are read."""

_LAYERS = "cross_model.layers."
_SIZES = SizeNames(
    patches="vision_model.embeddings.patch_embedding.weight",
    vision_positions="vision_model.embeddings.position_embedding.weight",
    vision_layers="vision_model.encoder.layers.",
    tokens="text_model.embeddings.token_embedding.weight",
    text_positions="text_model.embeddings.position_embedding.weight",
    text_layers="text_model.encoder.layers.",
    inner="mlp.fc1.weight",
    projection="visual_projection.weight",
    embedding=0,
)


class MpsScore:
    """MPS: overall human preference score of an image for its prompt (Zhang et al., arXiv 2405.14705).

    The image's tokens by CLIP ViT-H/14 read the prompt's tokens by cross-attention. Tokens of the prompt that
    are not similar to the condition are masked. The score is the cosine of the result and the prompt's
    embedding times the model's own scale.

    Images (B, 3, H, W) in [0, 1] of any size and B prompts -> float32 (B,). A prompt is truncated to 77
    tokens. The weights are frozen. Images are processed in float32; the model and its gradient are computed
    in `dtype`.

    Args:
        source: the published file, MPS_overall_checkpoint.pth; its conversion, a .safetensors file; a folder
            with one such file; or ID:FILE, a file on the hub. If there is no tokenizer beside it, the
            tokenizer of the base model is used (`VIT_H_TOKENIZER`).
        device: device of the model and of the images.
        dtype: dtype of the model; None is bfloat16 on GPUs and float32 on the CPU.
        condition: text that names what the preference is about.

    Raises:
        RewardError: the weights or their files are missing or do not match; the message says what to do.
    """

    def __init__(
        self,
        source: str | Path = SOURCE,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        condition: str = OVERALL,
    ) -> None:
        device = torch.device(device)
        found = find_checkpoint("mps", str(source), ".pth") or find_checkpoint(
            "mps", str(source), ".safetensors"
        )
        if found is None:
            raise RewardError(
                f"mps: {source} has no .pth or .safetensors file; name MPS_overall_checkpoint.pth, a folder "
                f"with it, or ID:FILE on the Hugging Face hub, such as {SOURCE}"
            )
        file, place = found
        tensors = _read(file)
        config = _config(file, tensors)
        vision: Any = config.vision_config
        text: Any = config.text_config
        self._length = text.max_position_embeddings
        self._tokenizer = load_tokenizer("mps", [place, VIT_H_TOKENIZER], text.vocab_size)
        self._preprocess = Preprocessing.from_config(
            {"size": vision.image_size, "crop_size": vision.image_size}
        )
        frequencies = [_frequencies(file, tensors, layer) for layer in range(config.cross_model["layers"])]
        positions = torch.arange((vision.image_size // vision.patch_size) ** 2 + 1)
        self._angles = [torch.outer(positions, one).to(device) for one in frequencies]
        model: Any = load_model(
            "mps",
            MpsModel,
            str(file),
            config,
            "the whole of MPS",
            tensors=tensors,
            published_name=_published_name,
        )
        # read before the model is rounded to dtype
        self._scale = model.logit_scale.exp().to(device)
        self._model = placed(model, device, dtype or default_dtype(device))
        self._condition, _ = self._text_tokens(condition)
        self._prompts: dict[str, Prompt] = {}

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_batch("mps", images, prompts)
        pixels = self._preprocess(images).to(self._model.dtype)
        read = [self._prompt(prompt) for prompt in prompts]
        tokens, embeddings, masks = (torch.stack(parts) for parts in zip(*read, strict=True))
        seen = self._model.read(pixels, tokens, masks, self._angles).float()
        return self._scale * functional.cosine_similarity(seen, embeddings.float(), dim=-1)

    def _prompt(self, prompt: str) -> "Prompt":
        """Return what is read of a prompt, computed once and alone for equal bits in every batch."""
        if prompt not in self._prompts:
            warn_of_cut("mps", self._tokenizer, [prompt], self._length)
            tokens, embedding = self._text_tokens(prompt)
            similarity = (tokens.float() @ self._condition.float().T).amax(dim=1)
            self._prompts[prompt] = Prompt(tokens, embedding, similarity / similarity.max() > THRESHOLD)
        return self._prompts[prompt]

    @torch.no_grad()
    def _text_tokens(self, text: str) -> tuple[Tensor, Tensor]:
        """Return the tokens (77, width) of a text, padding included, and its embedding (width,)."""
        numbers = self._tokenizer(
            text, padding="max_length", truncation=True, max_length=self._length, return_tensors="pt"
        ).input_ids
        output = self._model.text_model(input_ids=numbers.to(self._model.device))
        project = self._model.text_projection
        return project(output.last_hidden_state)[0], project(output.pooler_output)[0]


class Prompt(NamedTuple):
    """Parts of a prompt that images read."""

    tokens: Tensor
    """Tokens, (77, width)."""
    embedding: Tensor
    """Embedding of the whole prompt, (width,)."""
    read: Tensor
    """True for the tokens that are read, (77,)."""


class MpsModel(CLIPModel):
    """CLIP model with the cross-attention of MPS. `config.cross_model` has the sizes of the layers."""

    _keys_to_ignore_on_load_unexpected: set[str] | list[str] | None = [  # noqa: RUF012, as in transformers
        r"\.rotary_emb\.inv_freq$",
        r"\.pos_emb$",
        "position_ids",
    ]

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config)
        sizes = dict(config.cross_model)
        layers = sizes.pop("layers")
        width = config.projection_dim
        pairs = [
            nn.ModuleList([CrossLayer(width, **sizes), SelfLayer(width, **sizes)]) for _ in range(layers)
        ]
        self.cross_model = nn.ModuleDict({"layers": nn.ModuleList(pairs)})
        self.post_init()

    def read(self, pixels: Tensor, text: Tensor, mask: Tensor, angles: Sequence[Tensor]) -> Tensor:
        """Return the class token (B, width) after it has read the prompt.

        Args:
            pixels: preprocessed images (B, 3, h, w).
            text: tokens of the prompts (B, 77, width).
            mask: True for the tokens that are read, (B, 77).
            angles: angles of the rotary positions of each layer.
        """
        image = self.visual_projection(self.vision_model(pixel_values=pixels).last_hidden_state)
        layers: Any = self.cross_model["layers"]
        for (cross, own), layer_angles in zip(layers, angles, strict=True):
            image = own(cross(image, text, mask), layer_angles)
        token: Tensor = image[:, 0]
        return token


def _read(file: Path) -> dict[str, Tensor]:
    """Return the tensors of the file by the names of `MpsModel`, and the frequencies of the positions."""
    if file.suffix == ".safetensors":
        try:
            tensors = read_safetensors(file)
        except FAILURES as error:
            raise unusable("mps", str(file), error) from None
    else:
        tensors = read_module("mps", file)
    return {
        name.removeprefix("mps.").removeprefix("model.").replace(".fn.", "."): tensor
        for name, tensor in tensors.items()
    }


def _published_name(name: str) -> str:
    """Return the name in the published file of a tensor of `MpsModel`."""
    if not name.startswith(_LAYERS):
        return f"model.{name}"
    layer, half, rest = name.removeprefix(_LAYERS).split(".", 2)
    return f"{_LAYERS}{layer}.{half}.fn.{rest}"


def _config(file: Path, tensors: dict[str, Tensor]) -> Any:
    """Return the configuration of the model with these tensors."""

    def rows(name: str) -> int:
        return shape_of("mps", file, tensors, f"{_LAYERS}0.0.{name}", 2)[0]

    config: Any = vit_h_config("mps", file, tensors, _SIZES)
    head_width = max(rows("to_kv.weight") // 2, 1)
    config.cross_model = {
        "layers": count_layers(tensors, _LAYERS),
        "heads": rows("to_q.weight") // head_width,
        "head_width": head_width,
        "inner": rows("ff.0.weight") // 2,
    }
    return config


def _frequencies(file: Path, tensors: dict[str, Tensor], layer: int) -> Tensor:
    """Return the frequencies of a layer's rotary positions, float32, as rounded in the file."""
    name = f"{_LAYERS}{layer}.1.rotary_emb.inv_freq"
    shape_of("mps", file, tensors, name, 1)
    return tensors[name].float()
