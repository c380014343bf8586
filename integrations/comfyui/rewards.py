"""Nodes with rewards: loading, weighted sums, and judging of images."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from noisetilt_kernels.rewards import REWARDS, Reward, RewardSpec, WeightedSum
from noisetilt_kernels.rewards.registry import ENTRIES

CATEGORY = "noisetilt"
ALLOW_CUSTOM = "NOISETILT_CUSTOM_REWARDS"
"""Environment variable that allows workflows to name Python code as a reward."""

BUNDLED = [name for name in REWARDS if not ENTRIES[name].needs_argument]


@dataclass(frozen=True, eq=False)
class LoadedReward:
    """Value of the type REWARD: a reward, and how the user named it.

    Attributes:
        name: name of the reward.
        function: the reward.
        specs: names of the rewards of which it consists.
        device: device of the reward, to which images are moved.
    """

    name: str
    function: Reward
    specs: tuple[RewardSpec, ...]
    device: torch.device

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.function(images.to(self.device), prompts)

    def check(self, prompt: str, steers: bool) -> None:
        """Raise ValueError for a prompt that it cannot score, or if it shall steer and has no gradient."""
        for spec in self.specs:
            spec.check_prompts([prompt])
            if steers:
                spec.check_steers()


def load(name: str, source: str, device: str) -> LoadedReward:
    """Load a reward outside of inference mode, so that it has a gradient.

    Raises:
        ValueError, RewardError: the reward cannot be loaded, see `RewardSpec`.
    """
    spec = RewardSpec.parse(name.strip())
    if spec.entry.custom and os.environ.get(ALLOW_CUSTOM) != "1":
        raise ValueError(
            f"noisetilt: the reward {name!r} is Python code, which a workflow of someone else could misuse; "
            f"start ComfyUI with {ALLOW_CUSTOM}=1 to allow it"
        )
    file = _custom_file(name)
    if file is not None:
        sys.modules.pop(str(file.resolve()), None)  # the package keeps modules; the file may have changed
    if source.strip():
        spec = spec.with_source(source.strip())
    place = comfy.model_management.get_torch_device() if device == "default" else torch.device(device)
    with torch.inference_mode(False):
        return LoadedReward(spec.name, spec.load(place), (spec,), place)


def _custom_file(name: str) -> Path | None:
    """Return the file of a reward FILE.py:NAME or count:FILE.py:NAME, if such rewards are allowed."""
    place = name.strip().rpartition(":")[0]
    if os.environ.get(ALLOW_CUSTOM) != "1" or not place.endswith(".py"):
        return None
    files = [Path(place), Path(place.partition(":")[2])]
    return next((file for file in files if file.is_file()), None)


class RewardNode:
    """Node that loads a bundled reward by its name."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES = ("REWARD",)
    DESCRIPTION = "A bundled reward. Rewards with a network are downloaded at first use, or read from source."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs of the node."""
        texts = "; ".join(f"{name}: {ENTRIES[name].description}" for name in BUNDLED)
        return {
            "required": {"name": (BUNDLED, {"default": "brightness", "tooltip": texts})},
            "optional": _PLACE,
        }

    def load(self, name: str, source: str = "", device: str = "default") -> tuple[LoadedReward]:
        """Load the reward."""
        return (load(name, source, device),)


class RewardBySpecNode:
    """Node that loads a reward by the text that `load_reward` of the package takes."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES = ("REWARD",)
    DESCRIPTION = "A reward by its text, with an argument after a colon: color:blue, vlm:Is the cat asleep?"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs of the node."""
        return {
            "required": {"spec": ("STRING", {"default": "color:blue", "tooltip": "NAME or NAME:ARGUMENT."})},
            "optional": _PLACE,
        }

    @classmethod
    def IS_CHANGED(cls, spec: str, source: str = "", device: str = "default") -> int:
        """Return the time of a file with the user's code, so that ComfyUI loads a changed file again."""
        file = _custom_file(spec)
        return 0 if file is None else file.stat().st_mtime_ns

    def load(self, spec: str, source: str = "", device: str = "default") -> tuple[LoadedReward]:
        """Load the reward."""
        return (load(spec, source, device),)


class RewardSumNode:
    """Node with the weighted sum of two to four rewards."""

    CATEGORY, FUNCTION = CATEGORY, "add"
    RETURN_TYPES = ("REWARD",)
    DESCRIPTION = "The weighted sum of rewards. A negative weight avoids what a reward likes."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs of the node."""
        weight = ("FLOAT", {"default": 1.0, "min": -1e4, "max": 1e4, "step": 0.01})
        inputs = {
            number: {f"reward_{number}": ("REWARD",), f"weight_{number}": weight} for number in range(1, 5)
        }
        return {"required": inputs[1] | inputs[2], "optional": inputs[3] | inputs[4]}

    def add(self, **inputs: Any) -> tuple[LoadedReward]:
        """Return the sum."""
        terms: dict[str, tuple[float, Reward]] = {}
        specs: list[RewardSpec] = []
        device = inputs["reward_1"].device
        for number in range(1, 5):
            reward, weight = inputs.get(f"reward_{number}"), inputs.get(f"weight_{number}", 1.0)
            if reward is not None:
                terms[f"{weight:g} {reward.name} ({number})"] = weight, reward
                specs += reward.specs
        return (LoadedReward(" + ".join(terms), WeightedSum(terms), tuple(specs), device),)


class JudgeNode:
    """Node that sorts images by their rewards."""

    CATEGORY, FUNCTION = CATEGORY, "judge"
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("best", "sorted", "scores")
    DESCRIPTION = (
        "Rewards of the images of a batch: the best image, all images from the best, and the scores."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs of the node."""
        return {"required": {"images": ("IMAGE",), "reward": ("REWARD",), "prompt": PROMPT}}

    def judge(self, images: Tensor, reward: LoadedReward, prompt: str) -> tuple[Tensor, Tensor, str]:
        """Return the images in order, best first, and a line with each score."""
        reward.check(prompt, steers=False)
        with torch.inference_mode(False), torch.no_grad():
            planes = images.clone().movedim(-1, 1)[:, :3]
            scores = torch.cat([reward(plane, [prompt]).float().cpu() for plane in planes.split(1)])
        order = scores.nan_to_num(-torch.inf).argsort(descending=True, stable=True)
        lines = [f"image {index}: {reward.name} {scores[index]:.6g}" for index in order.tolist()]
        return images[order[:1]], images[order], "\n".join(lines)


PROMPT = ("STRING", {"default": "", "multiline": True, "tooltip": "Prompt that the reward reads."})
_PLACE = {
    "source": (
        "STRING",
        {"default": "", "tooltip": "Folder or hub id of the weights; empty is the default."},
    ),
    "device": (
        ["default", "cpu"],
        {"tooltip": "Device of the reward's network, where it stays; cpu leaves the GPU's memory free."},
    ),
}
