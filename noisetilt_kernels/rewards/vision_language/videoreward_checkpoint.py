"""Reader of VideoReward's checkpoints, as published or as its training code writes them.

Needs transformers. The files are:

    model_config.json                 settings of the training
    checkpoint-NUMBER/                the one with the largest number is read
        model.pth                     all weights, with the LoRA weights as separate tensors; or instead:
        adapter_model.safetensors     the LoRA weights, and
        non_lora_state_dict.pth       the other trained weights; the rest comes from the base model
        tokenizer/                    tokenizer with the marks; without it the base model's tokenizer is used

The names of the tensors are those of PEFT and of transformers 4.45 or 5.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from ..checks import RewardError
from ..loading import FAILURES, check_source, is_unreachable, unusable
from ..weightless import is_weightless, read_pickle, read_safetensors
from .videoreward_prompt import PARTS, PROMPT_TYPE

CONFIG_FILE = "model_config.json"
FULL_FILE, ADAPTER_FILE, OTHERS_FILE = "model.pth", "adapter_model.safetensors", "non_lora_state_dict.pth"

NORMAL = {"VQ": (3.6757, 2.2476), "MQ": (1.1646, 1.3811), "TA": (2.8105, 2.5121)}
"""Published means and standard deviations of the three rewards, for checkpoints without them."""

_ONLY: Mapping[str, Mapping[str, Any]] = {
    "data_config": {"prompt_template_type": PROMPT_TYPE, "sample_type": "uniform", "num_frames": None},
    "model_config": {"use_special_tokens": True, "reward_token": "special"},
}
"""Supported values of settings of the training; a missing setting is supported."""


@dataclass(frozen=True)
class Settings:
    """Settings of the training of a checkpoint.

    Attributes:
        fps: number of frames to score per second.
        most_pixels: largest number of pixels of a resized frame.
        normal: mean and standard deviation of each reward, by its name in the checkpoint.
        alpha: factor of the LoRA products, which are then divided by their rank; None without LoRA.
        root: True to divide by the square root of the rank instead.
    """

    fps: float
    most_pixels: int
    normal: Mapping[str, tuple[float, float]]
    alpha: float | None
    root: bool


def fetch(source: str) -> Path:
    """Return the folder of a source; a repository on the hub is downloaded.

    Raises:
        RewardError: the folder or repository does not exist, or the hub cannot be reached.
    """
    check_source("videoreward", source)
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(
            snapshot_download(
                source,
                allow_patterns=[CONFIG_FILE, "checkpoint-*"],
                local_files_only=is_weightless() or is_unreachable(source),
            )
        )
    except FAILURES as error:
        raise unusable("videoreward", source, error) from None


def read_settings(folder: Path) -> Settings:
    """Return the settings in model_config.json; missing ones have the published values.

    Raises:
        RewardError: the file is missing or cannot be read, or the checkpoint is of an unsupported kind.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise RewardError(
            f"videoreward: there is no {CONFIG_FILE} in {folder}; name a folder of VideoReward itself, with "
            f"{CONFIG_FILE} and checkpoint-NUMBER in it, not a folder of its base model Qwen2-VL"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        data, lora, inference = (
            config.get(name) or {} for name in ("data_config", "peft_lora_config", "inference_config")
        )
        others = [
            f"{name} {(config.get(part) or {})[name]!r}"
            for part, only in _ONLY.items()
            for name, value in only.items()
            if (config.get(part) or {}).get(name, value) != value
        ]
        settings = Settings(
            fps=float(data.get("fps", 2.0)),
            most_pixels=int(data.get("max_frame_pixels", 256 * 28 * 28)),
            normal={
                name: (float(inference.get(f"{name}_mean", mean)), float(inference.get(f"{name}_std", std)))
                for name, (mean, std) in NORMAL.items()
            },
            alpha=float(lora["lora_alpha"]) if lora.get("lora_enable") else None,
            root=bool(lora.get("use_rslora")),
        )
    except FAILURES as error:
        raise unusable("videoreward", str(folder), error) from None
    if others:
        raise RewardError(
            f"videoreward: the checkpoint in {folder} is of an unsupported kind, with {', '.join(others)}; "
            f"name one with the prompt {PROMPT_TYPE!r}, evenly spread frames, and rewards at special tokens"
        )
    return settings


def newest(folder: Path) -> Path:
    """Return the checkpoint-NUMBER with the largest number in a folder.

    Raises:
        RewardError: there is no checkpoint.
    """
    numbered = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit()
    }
    if not numbered:
        raise RewardError(
            f"videoreward: there is no folder checkpoint-NUMBER in {folder}; download all of VideoReward"
        )
    return numbered[max(numbered)]


def read_tensors(checkpoint: Path) -> tuple[dict[str, Tensor], bool]:
    """Return the tensors of a checkpoint-NUMBER, and True if the model is complete.

    The tensors have the names that `plain_name` returns.

    Raises:
        RewardError: the files are missing or cannot be read.
    """
    full = checkpoint / FULL_FILE
    files = [full] if full.is_file() else [checkpoint / OTHERS_FILE, checkpoint / ADAPTER_FILE]
    for file in files:
        if not file.is_file():
            raise RewardError(
                f"videoreward: there must be {FULL_FILE}, or {ADAPTER_FILE} and {OTHERS_FILE}, in "
                f"{checkpoint}; download all of VideoReward"
            )
    try:
        tensors: dict[str, Tensor] = {}
        for file in files:
            tensors |= (
                read_safetensors(file) if file.suffix == ".safetensors" else read_pickle(file, mmap=True)
            )
    except FAILURES as error:
        raise unusable("videoreward", str(checkpoint), error) from None
    named = {plain_name(name): tensor for name, tensor in tensors.items() if ".original_module." not in name}
    return named, files == [full]


def plain_name(name: str) -> str:
    """Return a tensor's name in `Qwen2VLModel` of transformers 5, without the parts of DDP and PEFT."""
    name = name.removeprefix("module.").removeprefix("base_model.model.")
    # LoRA weights are called "lora_A.default.weight"
    for part in ("base_layer", "modules_to_save", "default"):
        name = name.replace(f".{part}.", ".")
    name = name.removeprefix("model.")
    return (
        name
        if name.startswith(("visual.", "language_model.", "rm_head.", "lm_head."))
        else f"language_model.{name}"
    )


def merge_lora(tensors: Mapping[str, Tensor], settings: Settings, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors with LoRA merged into the weights: W + alpha / rank B A, computed in float32.

    Args:
        tensors: tensors by the names that `plain_name` returns, with all weights that LoRA changes.
        settings: settings of the checkpoint.
        dtype: dtype of the merged weights.

    Raises:
        RewardError: tensors are missing.
    """
    merged = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
    for name in tensors.keys() - merged.keys():
        layer, _, factor = name.partition(".lora_")
        needed = [f"{layer}.weight", f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"]
        missing = [one for one in needed if one not in tensors]
        if missing or name not in needed or settings.alpha is None:
            what = (
                missing[0] if missing else "peft_lora_config" if settings.alpha is None else f"use for {name}"
            )
            raise RewardError(
                f"videoreward: the checkpoint has LoRA's {name} but no {what}; download all of VideoReward"
            )
        if factor == "A.weight":
            weight, down, up = (tensors[one].float() for one in needed)
            if weight.shape != (len(up), down.shape[-1]) or up.shape[-1] != len(down):
                raise RewardError(
                    f"videoreward: the checkpoint has LoRA's {name} of shape {tuple(down.shape)} for "
                    f"{needed[0]} of shape {tuple(weight.shape)}; download all of VideoReward"
                )
            rank = len(down)
            scale = settings.alpha / (math.sqrt(rank) if settings.root else rank)
            merged[needed[0]] = (weight + scale * up @ down).to(dtype)
    return merged


def take_head(tensors: dict[str, Tensor], source: str) -> Tensor:
    """Remove the reward head from the tensors and return it: float32 (3, width), one row for each reward.

    The published head has a single row, which is used for all three.

    Raises:
        RewardError: there is no head, or it has another number of rows.
    """
    head = tensors.pop("rm_head.weight", None)
    if head is None:
        raise RewardError(
            f"videoreward: the checkpoint in {source} has no reward head (rm_head.weight); name a folder of "
            "VideoReward itself, not of its base model Qwen2-VL"
        )
    if head.ndim != 2 or len(head) not in (1, len(PARTS)):
        raise RewardError(
            f"videoreward: the reward head in {source} must have 1 or {len(PARTS)} rows, got "
            f"{tuple(head.shape)}; name a folder of VideoReward"
        )
    return head.float().expand(len(PARTS), -1)
