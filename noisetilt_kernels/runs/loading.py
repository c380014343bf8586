"""Loading of the model and the rewards named by the settings of a run."""

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch

from ..models import family_of, load_pipeline
from ..models.fine_tuned import check_denoiser, check_loras
from ..models.loading import check_quantize, family_at
from ..models.tiny_decoder import load_tiny, tiny_config
from ..rewards import RewardError, RewardSpec, WeightedSum
from ..rewards.features import Features, load_features
from ..rewards.frames import of_videos, takes_videos
from ..rewards.weightless import without_weights
from ..sampling import Reward
from .diversity import DiversitySpec
from .early_checks import check_early, video_reward_error
from .settings import ComputeOptions, Settings
from .videos import check_available

Loaded = TypeVar("Loaded")


def check_settings(settings: Settings, compute: ComputeOptions) -> None:
    """Check settings that depend on each other, before anything is loaded.

    Raises:
        ValueError: the model, a reward or an option cannot be used with the other settings.
        ImportError: a package is missing.
    """
    check_early(settings, compute)
    if settings.denoiser:
        check_denoiser(settings.denoiser)
    check_loras(settings.lora)
    check_quantize(settings.quantize, settings.model, settings.denoiser)
    family = family_at(settings.model)
    if family.videos:
        check_available()
    family.adapter(settings.model, settings.one_step, settings.model_options)
    if settings.reward_decoder is not None:
        family.check_tiny(settings.model)
        tiny_config(settings.reward_decoder)
    for reward in (*settings.rewards, *settings.held_out):
        if reward.videos and not family.videos:
            raise video_reward_error(reward.name, settings.model)
    if settings.diversity and family.videos:
        raise ValueError(f"--diversity compares images, but {settings.model!r} makes videos")


def load_model(settings: Settings, compute: ComputeOptions) -> Any:
    """Load the model and return the adapter that the method needs: a `FlowModel` or a `OneStepModel`.

    Raises:
        ModelError, ImportError: the model cannot be loaded.
    """
    dtype = getattr(torch, settings.dtype)
    decoder: dict[str, Any] = {}
    if settings.reward_decoder is not None:
        decoder["reward_decoder"] = load_tiny(settings.reward_decoder, dtype=dtype, device=compute.device)
    pipe = load_pipeline(
        settings.model,
        dtype=dtype,
        device=compute.device,
        offload=compute.offload,
        denoiser=settings.denoiser,
        lora=settings.lora,
        variant=settings.variant,
        quantize=settings.quantize,
    )
    adapter: Any = family_of(pipe).adapter(settings.model, settings.one_step, settings.model_options)
    return adapter(pipe, **settings.model_options, **decoder)


class CountedRewards:
    """Loader of a run's rewards and features without weights, for `plan_memory`.

    Args:
        settings, compute: settings of the run, and how to compute it.

    Attributes:
        uncounted: names of the rewards that are not counted: custom ones, and those whose files are not on
            this machine.
        uncounted_features: names of the features whose files are not on this machine.
        without_graph: names of the steering rewards of which only the weights are counted.
    """

    def __init__(self, settings: Settings, compute: ComputeOptions) -> None:
        self._settings, self._compute = settings, compute
        self.uncounted: list[str] = []
        self.uncounted_features: list[str] = []
        self.without_graph: list[str] = []
        self._kept: list[Any] = []

    def __call__(self) -> Reward | None:
        """Load the rewards; new tensors must be fake. Return the steering reward whose graph is counted."""
        parts: dict[str, tuple[float, Reward]] = {}
        for spec in self._settings.rewards:
            reward = self._load(spec)
            if reward is not None and spec.entry.counts_graph:
                parts[spec.name] = spec.weight, reward
            elif reward is not None:
                self.without_graph.append(spec.name)
        for spec in self._settings.held_out:
            self._load(spec)
        for one in _distinct_features(self._settings):
            if self._count(partial(load_features, one.features, one.source)) is None:
                self.uncounted_features.append(one.features)
        if not parts:
            return None
        summed, prompt = WeightedSum(parts), self._settings.prompts[0]
        return lambda images, prompts: summed(images, [prompt] * len(images))

    def _load(self, spec: RewardSpec) -> Reward | None:
        alone = replace(self._settings, rewards=(spec,), held_out=())
        on_cpu = replace(self._compute, device="cpu")
        loaded = None if spec.entry.custom else self._count(lambda: load_rewards(alone, on_cpu)[0])
        if loaded is None:
            self.uncounted.append(spec.name)
            return None
        return loaded.rewards[spec.name][1]

    def _count(self, load: Callable[[], Loaded]) -> Loaded | None:
        """Return what `load` loads, without weights; None if it cannot."""
        try:
            with without_weights(self._compute.device):
                loaded = load()
        except RewardError:
            return None
        self._kept.append(loaded)  # its weights count while they are alive
        return loaded


def _distinct_features(settings: Settings) -> Collection[DiversitySpec]:
    """Return a measure for each kind of features."""
    return {one.features: one for one in settings.diversity}.values()


def load_all_features(settings: Settings, compute: ComputeOptions) -> dict[str, Features]:
    """Load the features by name that the measures of diversity compare.

    Raises:
        RewardError: features cannot be loaded.
    """
    return {
        one.features: load_features(one.features, one.source, compute.device)
        for one in _distinct_features(settings)
    }


def load_rewards(settings: Settings, compute: ComputeOptions) -> tuple[WeightedSum, dict[str, Reward]]:
    """Load the steering reward and the held-out rewards by name, for the images or videos of the model.

    Raises:
        ValueError: a reward of videos is to judge images.
        RewardError, ImportError: a reward cannot be loaded.
    """
    videos = family_at(settings.model).videos

    def load(spec: RewardSpec) -> Reward:
        reward = spec.load(compute.device)
        if videos:
            return of_videos(reward, compute.frames_at_once)
        if takes_videos(reward):
            raise video_reward_error(spec.name, settings.model)
        return reward

    steering = WeightedSum({spec.name: (spec.weight, load(spec)) for spec in settings.rewards})
    return steering, {spec.name: load(spec) for spec in settings.held_out}
