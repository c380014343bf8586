"""The bundled rewards by name: description, loader, default weights, and valid arguments and prompts.

To add a reward, write its module and one entry here. Classes that need transformers are named by their module
and imported when they are loaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch

from ..sampling import Reward
from . import simple
from .checks import RewardError
from .counting.count import Count, CountError, CountExact
from .counting.quantity import quantity_of
from .custom import is_custom, load_custom
from .digits import DIGIT_REWARDS, DigitJudgeReward, DigitReward, digit_of
from .vision_language.videoreward_prompt import check_part
from .vision_language.vlm_question import question_of


@dataclass(frozen=True)
class Entry:
    """A kind of reward.

    Attributes:
        description: one line, with the range of the values.
        load: function (argument, source, device) that returns the reward.
        check_argument: function that raises ValueError unless an argument (the text after the colon) is
            valid; None if the reward takes no argument.
        needs_argument: True if the reward has no default argument.
        for_argument: function from this entry and a valid argument to the entry of the reward with the
            argument; None if it is this entry.
        source: default folder or hub id of the weights; None for a reward without weights.
        differentiable: True if the reward can steer; False if it can only judge finished images.
        check_prompt: function that raises ValueError for a prompt that the reward cannot score; None if it
            scores every prompt.
        videos: True if the reward takes videos (B, 3, F, H, W), False if it takes images.
        custom: True for the user's code, which may have weights and may take videos.
        counts_graph: True if the reward can be computed on fake tensors, which have no values, to count the
            memory of its graph.
    """

    description: str
    load: Callable[[str | None, str, str | torch.device], Reward]
    check_argument: Callable[[str], object] | None = None
    needs_argument: bool = False
    for_argument: Callable[["Entry", str], "Entry"] | None = None
    source: str | None = None
    differentiable: bool = True
    check_prompt: Callable[[str], object] | None = None
    videos: bool = False
    custom: bool = False
    counts_graph: bool = True


def _function(reward: Reward) -> Callable[..., Reward]:
    return lambda argument, source, device: reward


def _color(argument: str | None, source: str, device: str | torch.device) -> Reward:
    return simple.color() if argument is None else simple.color(argument)


def _class(reward_class: Callable[[str, str | torch.device], Reward]) -> Callable[..., Reward]:
    return lambda argument, source, device: reward_class(source, device)


def _transformers(module: str, class_name: str) -> Callable[..., Reward]:
    """Return the loader of a class in a module of this package that imports transformers."""

    def load(argument: str | None, source: str, device: str | torch.device) -> Reward:
        try:
            import_module("transformers")  # without it diffusers has an error that does not name it
            reward_class = getattr(import_module(f".{module}", __package__), class_name)
        except ImportError as error:
            raise RewardError(
                f"load_reward: this reward needs {error.name or 'a package'} ({error}); pip install "
                '"noisetilt-kernels[diffusers]"'
            ) from None
        reward: Reward = reward_class(source, device, *([] if argument is None else [argument]))
        return reward

    return load


def _counting(reward_class: type[Count]) -> Callable[..., Reward]:
    """Return the loader of a reward that counts by T2ICount, or by the custom counter of the argument."""

    def load(argument: str | None, source: str, device: str | torch.device) -> Reward:
        if argument is not None and is_custom(argument):
            return reward_class(load_custom(argument))
        wanted = None if argument is None else quantity_of(argument)
        return reward_class(_transformers("counting.t2icount", "T2ICount")(None, source, device), wanted)

    return load


def _check_quantity(argument: str) -> None:
    if not is_custom(argument):
        quantity_of(argument)


def _counting_entry(entry: Entry, argument: str) -> Entry:
    """Return the entry for a custom counter, which is the user's code, or for a quantity of all prompts."""
    return (
        replace(entry, custom=True, source=None) if is_custom(argument) else replace(entry, check_prompt=None)
    )


_COUNTING: Mapping[str, Any] = {
    "check_argument": _check_quantity,
    "for_argument": _counting_entry,
    "source": "best_model_paper.pth",  # on Google Drive, so it cannot be downloaded from here
    "check_prompt": quantity_of,
}

ENTRIES: Mapping[str, Entry] = {
    "aesthetic": Entry(
        "LAION aesthetic predictor V2, about 1 to 10",
        _transformers("clip.aesthetic", "AestheticScore"),
        source="shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE",
    ),
    "aesthetic-v2.5": Entry(
        "Aesthetic Predictor V2.5 on SigLIP, 1 to 10",
        _transformers("clip.aesthetic_v2_5", "AestheticV25Score"),
        source="https://github.com/discus0434/aesthetic-predictor-v2-5/raw/"
        "c0e15567fa61252cbff43d70c49a8bd27202ca9a/models/aesthetic_predictor_v2_5.pth"
        "#sha256=a6caf256b3dc434273c98dcb12f6bf17c5d4fc647d8df11f038386923dd06220",
    ),
    "brightness": Entry("mean luminance, 0 to 1", _function(simple.brightness)),
    "clip": Entry(
        "100 times the cosine of image and prompt",
        _transformers("clip.clip_score", "ClipScore"),
        source="openai/clip-vit-large-patch14",
    ),
    "color": Entry(
        "closeness of the mean colour to red, or to another one as in color:blue, -1 to 0",
        _color,
        check_argument=simple.color,
    ),
    "count": Entry(
        "minus the smooth L1 distance of the objects counted and named in the prompt, as in '37 apples', at "
        "most 0; count:MODULE:NAME counts by your function",
        _counting(Count),
        **_COUNTING,
    ),
    "count-error": Entry(
        "minus the absolute error of the number of objects; arguments as count; no gradient",
        _counting(CountError),
        differentiable=False,
        **_COUNTING,
    ),
    "count-exact": Entry(
        "1 if the rounded number of objects is right, else 0; arguments as count; no gradient",
        _counting(CountExact),
        differentiable=False,
        **_COUNTING,
    ),
    "digit": Entry(
        "log-probability of the handwritten digit that the prompt names, at most 0",
        _class(DigitReward),
        source=str(DIGIT_REWARDS),
        check_prompt=digit_of,
    ),
    "digit-judge": Entry(
        "1 if an independent judge sees the digit that the prompt names, else 0; no gradient",
        _class(DigitJudgeReward),
        source=str(DIGIT_REWARDS),
        differentiable=False,
        check_prompt=digit_of,
    ),
    "hpsv2": Entry(
        "human preference score of an image for its prompt by HPS v2.1, about 0.2 to 0.35",
        _transformers("clip.hpsv2", "HpsScore"),
        source="xswu/HPSv2:HPS_v2.1_compressed.pt",
    ),
    "hpsv3": Entry(
        "human preference score of an image for its prompt by HPSv3, about -2 to 12",
        _transformers("vision_language.hpsv3", "HpsV3"),
        source="MizzenAI/HPSv3:HPSv3.safetensors",
        counts_graph=False,
    ),
    "imagereward": Entry(
        "human preference score of an image for its prompt, about -2 to 2",
        _transformers("clip.imagereward", "ImageRewardScore"),
        source="THUDM/ImageReward:ImageReward.pt",
    ),
    "mps": Entry(
        "human preference score of an image for its prompt by MPS (overall)",
        _transformers("clip.mps", "MpsScore"),
        source="RE-N-Y/mpsv1:model.safetensors",
    ),
    "pickscore": Entry(
        "human preference score of an image for its prompt, about 18 to 24",
        _transformers("clip.pickscore", "PickScore"),
        source="yuvalkirstain/PickScore_v1",
    ),
    "smoothness": Entry("similarity of neighbouring pixels, -1 to 0", _function(simple.smoothness)),
    "symmetry": Entry("similarity of the left and right half, -1 to 0", _function(simple.symmetry)),
    "videoreward": Entry(
        "human preference score of a video for its prompt: the sum of three parts of about -3 to 3, or one "
        "part: videoreward:visual, :motion or :text",
        _transformers("vision_language.videoreward", "VideoReward"),
        check_argument=check_part,
        source="KwaiVGI/VideoReward",
        counts_graph=False,
        videos=True,
    ),
    "vlm": Entry(
        "probability that Qwen2.5-VL answers a question about the image as wanted, 0 to 1: vlm:QUESTION?, "
        "vlm:FILE.json, or the questions vlm:depth and vlm:horizon with an overlay",
        _transformers("vision_language.vlm", "VisionQuestion"),
        check_argument=question_of,
        needs_argument=True,
        source="Qwen/Qwen2.5-VL-7B-Instruct",
        counts_graph=False,
    ),
    "vqascore": Entry(
        "probability that Qwen2.5-VL finds the prompt shown, 0 to 1",
        _transformers("vision_language.vqascore", "VqaScore"),
        source="Qwen/Qwen2.5-VL-7B-Instruct",
        counts_graph=False,
    ),
}

REWARDS = tuple(ENTRIES)
"""Names of the bundled rewards."""


def default_source(name: str) -> str:
    """Return the default folder or hub id of a bundled reward's weights."""
    source = ENTRIES[name].source
    if source is None:
        raise ValueError(f"default_source: reward {name!r} has no weights; name a reward that has")
    return source
