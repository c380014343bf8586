"""A reward as the user names it: parsed once, then checked and loaded.

A name is one of `REWARDS`, with an argument after a colon where the reward takes one (`color:blue`,
`color:#ff8000`, `videoreward:motion`), or the place of a custom reward, MODULE:NAME or FILE.py:NAME.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..checks import check_choice, finite_number
from ..sampling import Reward
from .custom import check_custom, is_custom, load_custom
from .registry import ENTRIES, REWARDS, Entry
from .weighted import WeightedSum


@dataclass(frozen=True)
class RewardSpec:
    """One reward of a run. Made by `RewardSpec.parse` or `parse_rewards`; nothing is loaded until `load`.

    Attributes:
        name: text that names the reward, such as "color:blue", without the weight.
        entry: kind of the reward.
        argument: text after the colon of a bundled reward's name, or None.
        weight: factor of the reward in a weighted sum.
        source: folder or hub id of the weights; None for a reward without weights and for a custom reward.
    """

    name: str
    entry: Entry
    argument: str | None = None
    weight: float = 1.0
    source: str | None = None

    @classmethod
    def parse(cls, name: str, weight: float = 1.0, sources: Mapping[str, str] | None = None) -> "RewardSpec":
        """Parse the name of a reward.

        Args:
            name: one of `REWARDS`, with or without an argument, or MODULE:NAME or FILE.py:NAME.
            weight: factor of the reward in a weighted sum.
            sources: folder or hub id of the weights by the reward's name without argument; entries for other
                rewards are not used.

        Raises:
            ValueError: the name is unknown, its argument is not valid, or `sources` has an entry for a reward
                without weights.
        """
        _, entry, argument = _parse_name(name)
        return cls(name, entry, argument, weight, entry.source).with_sources(sources or {})

    @property
    def videos(self) -> bool:
        """True for a bundled reward of videos. For a custom reward, see `takes_videos` after loading."""
        return self.entry.videos

    @property
    def has_weights(self) -> bool:
        """True if the reward has a network, or may have one because it is custom."""
        return self.entry.custom or self.entry.source is not None

    def with_source(self, source: str) -> "RewardSpec":
        """Return the spec with the weights at another folder or hub id.

        Raises:
            ValueError: the reward has no weights.
        """
        if self.entry.source is None:
            raise ValueError(
                f"rewards: reward {self.name!r} has no weights that a source could name, got source "
                f"{source!r}; leave the source out"
            )
        return replace(self, source=source)

    def with_sources(self, sources: Mapping[str, str]) -> "RewardSpec":
        """Return the spec with the source of its name without argument, or unchanged if there is none.

        Raises:
            ValueError: the reward has no weights.
        """
        source = None if self.entry.custom else sources.get(self.name.partition(":")[0])
        return self if source is None else self.with_source(source)

    def check_steers(self) -> None:
        """Raise ValueError if the reward has no gradient."""
        if not self.entry.differentiable:
            valid = ", ".join(repr(name) for name, entry in ENTRIES.items() if entry.differentiable)
            raise ValueError(
                f"rewards: reward {self.name!r} has no gradient, so it can judge images but not steer; "
                f"valid: {valid}"
            )

    def check_exists(self) -> None:
        """Raise RewardError if a custom reward is in a file that does not exist; nothing is imported."""
        if self.entry.custom:
            check_custom(self.argument or self.name)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise ValueError for a prompt that the reward cannot score."""
        if self.entry.check_prompt is not None:
            for prompt in prompts:
                self.entry.check_prompt(prompt)

    def load(self, device: str | torch.device = "cpu") -> Reward:
        """Return the reward, without its weight in a sum.

        Args:
            device: device of the images to be scored.

        Raises:
            RewardError: the weights cannot be loaded, transformers is not installed, or a custom reward
                cannot be imported or called.
        """
        return self.entry.load(self.argument, os.path.expanduser(self.source or ""), device)


def parse_rewards(
    spec: str | Mapping[str, float], sources: Mapping[str, str] | None = None
) -> tuple[RewardSpec, ...]:
    """Parse a weighted sum of rewards.

    Args:
        spec: text such as "aesthetic=1.0,color:#ff8000=-0.5", in which a name alone has the weight 1; or the
            weights by name.
        sources: see `RewardSpec.parse`.

    Raises:
        ValueError: a name is unknown or repeated, or a weight is not a finite number.
    """
    if not isinstance(spec, str):
        return tuple(RewardSpec.parse(name, weight, sources) for name, weight in spec.items())
    rewards: dict[str, RewardSpec] = {}
    for part in spec.split(","):
        name, equals, number = (text.strip() for text in part.partition("="))
        if not name:
            raise ValueError(f"rewards: spec must be of the form 'name=weight,name=weight', got {spec!r}")
        reward = RewardSpec.parse(name, sources=sources)
        if name in rewards:
            raise ValueError(f"rewards: each reward must be named once, got {name!r} twice in {spec!r}")
        rewards[name] = replace(reward, weight=_parse_weight(name, number)) if equals else reward
    return tuple(rewards.values())


def parse_weights(spec: str) -> dict[str, float]:
    """Return the weights by name: "clip,color:blue=-0.5" -> {"clip": 1.0, "color:blue": -0.5}.

    See `parse_rewards` for the text and the errors.
    """
    return {reward.name: reward.weight for reward in parse_rewards(spec)}


def load_reward(name: str, *, source: str | None = None, device: str | torch.device = "cpu") -> Reward:
    """Return a reward by its name.

    Args:
        name: see `RewardSpec.parse`.
        source: folder or hub id of the weights; None is the default one.
        device: device of the images to be scored.

    Raises:
        ValueError: the name is unknown, its argument is not valid, or a source is given for a reward without
            weights.
        RewardError: see `RewardSpec.load`.
    """
    spec = RewardSpec.parse(name)
    return (spec if source is None else spec.with_source(source)).load(device)


def load_rewards(
    spec: str | Mapping[str, float],
    *,
    sources: Mapping[str, str] | None = None,
    device: str | torch.device = "cpu",
) -> WeightedSum:
    """Return the weighted sum of rewards that steers sampling.

    Args:
        spec: see `parse_rewards`.
        sources: folder or hub id of the weights by the reward's name without argument; entries for rewards
            that are not in the sum are allowed.
        device: device of the images to be scored.

    Raises:
        ValueError: no reward is named, a name, weight or source is not valid, or a reward has no gradient.
            Raised before anything is loaded.
        RewardError: see `RewardSpec.load`.
    """
    rewards = parse_rewards(spec, sources)
    if not rewards:
        raise ValueError("load_rewards: spec must name at least one reward, got none")
    for reward in rewards:
        reward.check_steers()
    check_sources(sources or {})
    return WeightedSum({reward.name: (reward.weight, reward.load(device)) for reward in rewards})


def check_prompts(names: Iterable[str], prompts: Sequence[str]) -> None:
    """Raise ValueError for an unknown name, or a prompt that a reward cannot score; nothing is loaded."""
    for name in names:
        RewardSpec.parse(name).check_prompts(prompts)


def check_sources(sources: Mapping[str, str]) -> None:
    """Raise ValueError for a source that does not exist, or of a reward that is unknown or has no weights.

    A source is treated as a path if it begins with "/", "." or "~". Nothing is loaded.
    """
    for name, source in sources.items():
        check_choice("rewards", "reward in sources", name, REWARDS)
        RewardSpec(name, ENTRIES[name]).with_source(source)
        places = source, source.rpartition(":")[0] or source  # FOLDER:FILE names a file within a folder
        if source.startswith(("/", ".", "~")) and not any(
            os.path.exists(os.path.expanduser(place)) for place in places
        ):
            raise ValueError(f"rewards: there is no {source} for {name!r}; name a folder, a file or a hub id")


def _parse_weight(name: str, text: str) -> float:
    weight = finite_number(text)
    if weight is None:
        raise ValueError(f"rewards: the weight of {name!r} must be a finite number, got {text!r}")
    return weight


def _parse_name(name: Any) -> tuple[str, Entry, str | None]:
    """Return the name before the colon, its entry, and the argument after the colon."""
    base, colon, argument = name.partition(":") if isinstance(name, str) else (name, "", "")
    if colon and base not in ENTRIES:
        return base, _custom_entry(name), None
    check_choice("rewards", "reward", base, REWARDS)
    entry = ENTRIES[base]
    if not colon and entry.needs_argument:
        raise ValueError(f"rewards: reward {base!r} needs an argument after a colon: {entry.description}")
    if not colon:
        return base, entry, None
    if entry.check_argument is None:
        takers = ", ".join(repr(other) for other, one in ENTRIES.items() if one.check_argument is not None)
        raise ValueError(f"rewards: reward {base!r} takes no argument, got {name!r}; only {takers} do")
    entry.check_argument(argument)
    return base, entry if entry.for_argument is None else entry.for_argument(entry, argument), argument


def _custom_entry(name: str) -> Entry:
    """Return the entry of a custom reward; nothing is imported."""
    if not is_custom(name):
        raise ValueError(
            f"rewards: {name!r} is neither a bundled reward nor a custom one, which is written MODULE:NAME "
            "or FILE.py:NAME"
        )
    return Entry("custom reward", lambda argument, source, device: load_custom(name), custom=True)
