"""Checks of settings without diffusers and without the files of a model, which take no time."""

import torch

from ..model_sources import BUNDLED, locate, unknown_words
from ..rewards.features import check_features
from .settings import ComputeOptions, Settings, check_limits


def check_early(settings: Settings, compute: ComputeOptions) -> None:
    """Check settings that depend on each other. Importing this function does not import diffusers.

    Raises:
        ValueError: the model, a reward or an option cannot be used with the other settings.
        RewardError: the file of a custom reward does not exist.
    """
    check_limits(settings, compute)
    if compute.offload and torch.device(compute.device).type == "cpu":
        raise ValueError("--offload is for GPUs, got a run on the CPU; leave it out")
    if settings.dtype == "float16" and settings.method.needs_gradient:
        raise ValueError(
            "--dtype float16 rounds the small gradients of pixels to zero; use bfloat16 or float32"
        )
    for reward in settings.rewards:
        reward.check_steers()
    for reward in (*settings.rewards, *settings.held_out):
        reward.check_exists()
        reward.check_prompts(settings.prompts)
    if settings.diversity and settings.particles < 2:
        raise ValueError(
            "--diversity compares the images of a prompt, so --particles must be at least 2, got "
            f"{settings.particles}"
        )
    for measure in settings.diversity:
        check_features(measure.features)
    locate(settings.model)
    bundled = BUNDLED.get(settings.model)
    if bundled is None:
        return
    if bundled.one_step != settings.one_step:
        command, other = ("sample", "digits-turbo") if settings.one_step else ("optimize", "digits")
        raise ValueError(f"{settings.model!r} is for `noisetilt {command}`; use {other!r} here")
    for reward in (*settings.rewards, *settings.held_out):
        if reward.videos:
            raise video_reward_error(reward.name, settings.model)


def warnings_of(settings: Settings) -> list[str]:
    """Return a sentence for each prompt with words that the bundled model does not know."""
    sentences = []
    for prompt in dict.fromkeys(settings.prompts):
        words = unknown_words(settings.model, prompt)
        if words:
            sentences.append(
                f"{settings.model!r} does not know {', '.join(map(repr, words))} in the prompt {prompt!r}; "
                "it draws digits, named as in 'a handwritten seven'"
            )
    return sentences


def video_reward_error(reward: str, model: str) -> ValueError:
    """Return the error of a reward of videos for a model of images."""
    return ValueError(f"the reward {reward!r} judges videos, but {model!r} makes images")
