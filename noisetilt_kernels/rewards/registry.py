"""The rewards by name: what they are, how they are loaded, and whether they have a gradient.

A name may carry an argument after a colon: `color:blue`, `color:#ff8000`, `videoreward:motion`. What has no name here
may be a reward of one's own, MODULE:NAME or FILE.py:NAME.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from ..checks import check_choice
from ..sampling import Reward
from . import simple, sources
from .checks import RewardError
from .custom import is_own, load_own
from .digits import DIGIT_REWARDS, DigitJudgeReward, DigitReward, digit_of
from .videoreward_prompt import check_part
from .weighted import WeightedSum


@dataclass(frozen=True)
class Entry:
    """A reward that can be loaded by name.

    Attributes:
        description: one line.
        load: makes it of the argument in its name, the source of its weights, and the device.
        check_argument: raises ValueError for what must not follow the colon; None if nothing may.
        source: folder or hub id of its weights if no other is named; None if it has none.
        differentiable: whether it can steer; if not it can only judge.
        check_prompt: raises ValueError for a prompt that the reward cannot judge by.
        videos: it is of videos (B, 3, F, H, W), and not of images.
    """

    description: str
    load: Callable[[str | None, str, str | torch.device], Reward]
    check_argument: Callable[[str], object] | None = None
    source: str | None = None
    differentiable: bool = True
    check_prompt: Callable[[str], object] | None = None
    videos: bool = False


def _plain(reward: Reward) -> Callable[..., Reward]:
    return lambda argument, source, device: reward


def _color(argument: str | None, source: str, device: str | torch.device) -> Reward:
    return simple.color() if argument is None else simple.color(argument)


def _weights(reward_class: Callable[[str, str | torch.device], Reward]) -> Callable[..., Reward]:
    return lambda argument, source, device: reward_class(source, device)


def _by_transformers(module: str, class_name: str) -> Callable[..., Reward]:
    def load(argument: str | None, source: str, device: str | torch.device) -> Reward:
        try:
            reward_class = getattr(import_module(f".{module}", __package__), class_name)
        except ImportError as error:
            raise RewardError(
                f'load_reward: this reward needs transformers ({error}); pip install "noisetilt-kernels[diffusers]"'
            ) from None
        reward: Reward = reward_class(source, device, *([] if argument is None else [argument]))
        return reward

    return load


ENTRIES: Mapping[str, Entry] = {
    "aesthetic": Entry(
        "LAION aesthetic predictor V2, about 1 to 10",
        _by_transformers("aesthetic", "AestheticScore"),
        source=sources.AESTHETIC,
    ),
    "brightness": Entry("mean luminance, 0 to 1", _plain(simple.brightness)),
    "clip": Entry(
        "100 times the cosine of image and prompt", _by_transformers("clip", "ClipScore"), source=sources.CLIP
    ),
    "color": Entry(
        "closeness of the mean colour to red, or to another one as in color:blue, -1 to 0",
        _color,
        check_argument=simple.color,
    ),
    "digit": Entry(
        "log-probability of the handwritten digit that the prompt names, at most 0",
        _weights(DigitReward),
        source=str(DIGIT_REWARDS),
        check_prompt=digit_of,
    ),
    "digit-judge": Entry(
        "1 where an independent judge sees the digit that the prompt names, else 0; no gradient",
        _weights(DigitJudgeReward),
        source=str(DIGIT_REWARDS),
        differentiable=False,
        check_prompt=digit_of,
    ),
    "hpsv2": Entry(
        "what people prefer for the prompt, by HPS v2.1, about 0.2 to 0.35",
        _by_transformers("hpsv2", "HpsScore"),
        source=sources.HPSV2,
    ),
    "imagereward": Entry(
        "what people prefer for the prompt, about -2 to 2",
        _by_transformers("imagereward", "ImageRewardScore"),
        source=sources.IMAGEREWARD,
    ),
    "pickscore": Entry(
        "what people prefer for the prompt, about 18 to 24",
        _by_transformers("clip", "PickScore"),
        source=sources.PICKSCORE,
    ),
    "smoothness": Entry("likeness of neighbouring pixels, -1 to 0", _plain(simple.smoothness)),
    "symmetry": Entry("likeness of left and right, -1 to 0", _plain(simple.symmetry)),
    "videoreward": Entry(
        "what people prefer of videos for the prompt: the sum of three parts of about -3 to 3, or one of them, as in "
        "videoreward:motion, :visual or :text",
        _by_transformers("videoreward", "VideoReward"),
        check_argument=check_part,
        source=sources.VIDEOREWARD,
        videos=True,
    ),
    "vqascore": Entry(
        "probability that Qwen2.5-VL finds the prompt shown, 0 to 1",
        _by_transformers("vqascore", "VqaScore"),
        source=sources.VQASCORE,
    ),
}

REWARDS = tuple(ENTRIES)


def load_reward(name: str, *, source: str | None = None, device: str | torch.device = "cpu") -> Reward:
    """A reward by its name.

    Args:
        name: one of `REWARDS`, or one's own, MODULE:NAME or FILE.py:NAME; "color" may have a colour after a colon,
            "videoreward" one of its parts.
        source: folder or hub id of its weights; None is the usual one.
        device: where images will be.

    Raises:
        ValueError: an unknown name, an argument that is not valid, or a source for a reward without weights.
        RewardError: the weights cannot be had, transformers is not installed, or one's own reward cannot be imported or
            called; the message says what to do.
    """
    entry, argument = _find("load_reward", name)
    if entry.source is None:
        if source is not None:
            raise ValueError(
                f"load_reward: source must be None for {name!r}, which has no weights, got {source!r}"
            )
        return entry.load(argument, "", device)
    return entry.load(argument, os.path.expanduser(source or entry.source), device)


def parse_weights(spec: str) -> dict[str, float]:
    """Weights of rewards: "aesthetic=1.0,color:#ff8000=-0.5" -> {"aesthetic": 1.0, "color:#ff8000": -0.5}.

    A name alone has the weight 1. Nothing is loaded.

    Raises:
        ValueError: an unknown or repeated name, or a weight that is not a finite number.
    """
    weights: dict[str, float] = {}
    for part in spec.split(","):
        name, _, text = part.strip().partition("=")
        name = name.strip()
        if not name:
            raise ValueError(
                f"parse_weights: spec must be of the form 'name=weight,name=weight', got {spec!r}"
            )
        _find("parse_weights", name)
        if name in weights:
            raise ValueError(f"parse_weights: each reward must be named once, got {name!r} twice in {spec!r}")
        try:
            weights[name] = float(text) if "=" in part else 1.0
        except ValueError:
            weights[name] = math.nan
        if not math.isfinite(weights[name]):
            raise ValueError(
                f"parse_weights: the weight of {name!r} must be a finite number, got {text.strip()!r}"
            )
    return weights


def load_rewards(
    spec: str | Mapping[str, float],
    *,
    sources: Mapping[str, str] | None = None,
    device: str | torch.device = "cpu",
) -> WeightedSum:
    """The weighted sum of rewards that is to steer.

    Args:
        spec: as `parse_weights` takes it, or what it returns.
        sources: of the weights by the name of the reward, without an argument after a colon, where it is not the usual
            one; other names may be there too.
        device: where images will be.

    Raises:
        ValueError: as of `parse_weights` and `load_reward`; or a reward has no gradient. Before anything is loaded.
        RewardError: as of `load_reward`.
    """
    weights = parse_weights(spec) if isinstance(spec, str) else dict(spec)
    if not weights:
        raise ValueError("load_rewards: spec must name at least one reward, got none")
    for name in weights:
        entry, _ = _find("load_rewards", name)
        if not entry.differentiable:
            valid = ", ".join(repr(other) for other, one in ENTRIES.items() if one.differentiable)
            raise ValueError(
                f"load_rewards: reward {name!r} has no gradient, so it can judge images but not steer; valid: {valid}"
            )
    check_sources(sources or {})
    return WeightedSum(
        {
            name: (weight, load_reward(name, source=source_of(name, sources or {}), device=device))
            for name, weight in weights.items()
        }
    )


def check_sources(sources: Mapping[str, str]) -> None:
    """Raises ValueError for a source of a reward that there is not, that has no weights, or for a path to nothing.

    Nothing is loaded.
    """
    for name, source in sources.items():
        check_choice("load_rewards", "reward in sources", name, REWARDS)
        if ENTRIES[name].source is None:
            raise ValueError(
                f"load_rewards: {name!r} has no weights, and so no source; got {source!r} for it"
            )
        places = source, source.rpartition(":")[0] or source  # of a file within
        if source.startswith(("/", ".", "~")) and not any(
            os.path.exists(os.path.expanduser(one)) for one in places
        ):
            raise ValueError(
                f"load_rewards: there is no {source} for {name!r}; name a folder, a file or a hub id"
            )


def source_of(name: str, sources: Mapping[str, str]) -> str | None:
    """Of a reward's weights, where it is not the usual one: that of its name without the argument after a colon."""
    return sources.get(name.partition(":")[0])


def check_prompts(names: Iterable[str], prompts: Sequence[str]) -> None:
    """Raises ValueError for a prompt that one of the rewards cannot judge by; nothing is loaded."""
    for name in names:
        entry, _ = _find("check_prompts", name)
        for prompt in prompts:
            if entry.check_prompt is not None:
                entry.check_prompt(prompt)


def has_weights(name: str) -> bool:
    """Whether a reward of this name may have a network of its own; nothing is loaded. Raises as `judges_videos`."""
    entry, _ = _find("has_weights", name)
    return entry not in ENTRIES.values() or entry.source is not None


def judges_videos(name: str) -> bool:
    """Whether a reward of this name is of videos (B, 3, F, H, W); nothing is loaded.

    Raises:
        ValueError: an unknown name, or an argument that is not valid.
    """
    return _find("judges_videos", name)[0].videos


def _find(function: str, name: Any) -> tuple[Entry, str | None]:
    """The entry of a name, and the argument after its colon."""
    base, colon, argument = name.partition(":") if isinstance(name, str) else (name, "", "")
    if colon and base not in ENTRIES:
        return _own(function, name), None
    check_choice(function, "reward", base, REWARDS)
    entry = ENTRIES[base]
    if not colon:
        return entry, None
    if entry.check_argument is None:
        takers = " and ".join(repr(other) for other, one in ENTRIES.items() if one.check_argument is not None)
        raise ValueError(f"{function}: reward {base!r} takes no argument, got {name!r}; only {takers} do")
    entry.check_argument(argument)
    return entry, argument


def _own(function: str, name: str) -> Entry:
    """Of a reward of one's own; nothing is imported."""
    if not is_own(name):
        raise ValueError(
            f"{function}: {name!r} is no reward in the box, and one of your own is written MODULE:NAME or FILE.py:NAME"
        )
    return Entry("a reward of one's own", lambda argument, source, device: load_own(name))
