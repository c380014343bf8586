"""Human preference of videos by VideoReward: visual quality, motion quality and text alignment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from ...checks import check_number
from ..checks import check_videos
from ..loading import load_model, make_config, model_config
from ..registry import default_source
from ..weightless import default_dtype, placed
from .qwen import Chat, Patches, hidden_at_marks, load_marked_model
from .videoreward_checkpoint import (
    fetch,
    merge_lora,
    newest,
    plain_name,
    read_settings,
    read_tensors,
    take_head,
)
from .videoreward_prompt import MARKS, PARTS, PROMPT_FILE, check_part

SOURCE = default_source("videoreward")

BASE = "Qwen/Qwen2-VL-2B-Instruct"
"""Hub id of the base model of VideoReward, which is published without a model configuration."""

LEAST_PIXELS = 128 * 28 * 28
"""Smallest number of pixels of a resized frame, unless the checkpoint's largest number is smaller."""
LEAST_FRAMES, MOST_FRAMES = 4, 768
"""Smallest and largest number of frames that are scored, if the video has enough frames."""


class VideoReward:
    """VideoReward: human preference score of a video for its prompt (Liu et al., arXiv 2501.13918).

    A Qwen2-VL of 2 billion weights reads the video, then a long text that contains the prompt. The hidden
    states at three marks in the text give three numbers: visual quality, motion quality and text alignment.
    Each is normalized by a mean and a standard deviation of the checkpoint, so that most values are from -3
    to 3. The reward is one of them, or the sum of all three. The model was trained to choose the better of
    two videos of the same prompt.

    Videos (B, 3, F, H, W) in [0, 1] of any size with at least 2 frames, and B prompts -> float32 (B,). Two
    frames of each second are scored: an even number, and at least 4 if the video has that many. The
    weights are frozen. Videos are processed in float32; the model and its gradient are computed in `dtype`,
    one video at a time. Activations are recomputed in the backward pass.

    Args:
        source: folder or hub id with model_config.json and checkpoint-NUMBER.
        device: device of the model and of the videos.
        part: "visual", "motion" or "text"; None is the sum of all three.
        fps: frames per second of the videos.
        dtype: dtype of the model; None is bfloat16 on GPUs and float32 on the CPU.
        base: folder or hub id of the base model, a Qwen2-VL. It provides the configuration, and the weights
            and the tokenizer that the checkpoint lacks. None is the source if it has a config.json, else
            `BASE` on the hub.

    Raises:
        RewardError: the weights or their files are missing or do not match; the message says what to do.
        ValueError, TypeError: the part is unknown, or fps is not a positive number.
    """

    takes_videos = True

    def __init__(
        self,
        source: str | Path = SOURCE,
        device: str | torch.device = "cpu",
        part: str | None = None,
        fps: float = 16.0,
        dtype: torch.dtype | None = None,
        base: str | Path | None = None,
    ) -> None:
        if part is not None:
            check_part(part)
        check_number("VideoReward", "fps", fps, 1e-3)
        source, device = str(source), torch.device(device)
        dtype = dtype or default_dtype(device)
        folder = fetch(source)
        settings = read_settings(folder)
        checkpoint = newest(folder)
        if base is None:
            base = folder if (folder / "config.json").is_file() else BASE
        config: Any = make_config(
            "videoreward", str(base), Qwen2VLConfig, model_config("videoreward", str(base), ["qwen2_vl"])
        )
        tensors, complete = read_tensors(checkpoint)
        if not complete:
            tensors = {**_base_tensors(str(base), config), **tensors}
        head = take_head(tensors, source)
        tensors = merge_lora(tensors, settings, dtype)
        self._chat = Chat(
            "videoreward", [str(checkpoint / "tokenizer"), str(base)], "video", config.video_token_id, MARKS
        )
        wanted = (
            "all of VideoReward, with its tokenizer, and name a folder of its base model Qwen2-VL as base"
        )
        model = load_marked_model("videoreward", source, config, tensors, self._chat, wanted, dtype)
        self._model = placed(model, device)
        self._head = head.to(device)
        normal = torch.tensor([settings.normal[name] for name in PARTS.values()], device=device)
        self._mean, self._std = normal.unbind(dim=1)
        self._parts = [list(PARTS).index(part)] if part else list(range(len(PARTS)))
        self._text = PROMPT_FILE.read_text(encoding="utf-8")
        self.fps, self._rate = fps, settings.fps
        vision = config.vision_config
        self._patches = Patches(
            "videoreward",
            side=vision.patch_size,
            merged=vision.spatial_merge_size,
            frames=vision.temporal_patch_size,
            least=min(LEAST_PIXELS, settings.most_pixels),
            most=settings.most_pixels,
        )

    def __call__(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        check_videos("videoreward", videos, prompts)
        frames = chosen_frames(videos.shape[2], self.fps, self._rate)
        videos = videos.transpose(1, 2)[:, frames]
        return torch.stack(
            [self._reward_of(video, prompt) for video, prompt in zip(videos, prompts, strict=True)]
        )

    def _reward_of(self, frames: Tensor, prompt: str) -> Tensor:
        """Return the reward, a scalar, of the chosen frames (F, 3, H, W) of one video."""
        pixels, grid = self._patches(frames)
        t, down, across = self._patches.tokens(grid)
        tokens = self._chat.tokens(self._text.replace("{text_prompt}", prompt), t * down * across)
        hidden = hidden_at_marks(
            self._model, self._chat, tokens, pixel_values_videos=pixels, video_grid_thw=grid
        )
        rewards = (hidden.float() * self._head).sum(dim=1)
        return ((rewards - self._mean) / self._std)[self._parts].sum()


def chosen_frames(count: int, fps: float, rate: float) -> Tensor:
    """Return the indices of the frames to score: evenly spread, from the first to the last.

    Args:
        count: number of frames of the video.
        fps: frames of the video per second.
        rate: frames to score per second.

    Raises:
        ValueError: the video has fewer than 2 frames.
    """
    if count < 2:
        raise ValueError(f"videoreward: videos must have at least 2 frames, got {count}")
    most = min(MOST_FRAMES, count) // 2 * 2
    number = round(min(max(count / fps * rate, LEAST_FRAMES), most) / 2) * 2
    return torch.linspace(0, count - 1, number).round().long()


def _base_tensors(base: str, config: Any) -> dict[str, Tensor]:
    model: Any = load_model(
        "videoreward", Qwen2VLForConditionalGeneration, base, config, "a whole Qwen2-VL model"
    )
    return {plain_name(name): tensor for name, tensor in model.state_dict().items()}
