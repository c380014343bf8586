"""Rewards of videos: those that are made for videos, and those of images, frame by frame."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..checks import check_integer
from ..sampling import Reward
from ..sampling.protocols import check_reward
from .checks import check_videos

FRAMES_AT_ONCE = 4


class PerFrame:
    """The mean over the frames of videos (B, 3, F, H, W) of a reward of images; itself a reward of videos.

    Frames are judged a few at a time, and again in the backward: what is in memory is the graph of those few, however
    long the video is, for a third more time.

    Args:
        reward: of images (B, 3, H, W).
        at_once: how many frames of each video the reward is given at once, at least 1.
        every: judge frames 0, every, 2 every, ...; at least 1.

    Raises:
        ValueError, TypeError: an argument out of its range.
    """

    takes_videos = True

    def __init__(self, reward: Reward, at_once: int = FRAMES_AT_ONCE, every: int = 1) -> None:
        check_reward("PerFrame", reward)
        check_integer("PerFrame", "at_once", at_once, 1)
        check_integer("PerFrame", "every", every, 1)
        self._reward, self._at_once, self._every = reward, at_once, every

    def __call__(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        check_videos("PerFrame", videos, prompts)
        frames = videos[:, :, :: self._every]
        sums = [self._sum(part, prompts) for part in frames.split(self._at_once, dim=2)]
        return torch.stack(sums).sum(dim=0) / frames.shape[2]

    def _sum(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Of the rewards of some frames (B, 3, f, H, W): (B,)."""
        if frames.requires_grad and torch.is_grad_enabled():
            summed: Tensor = checkpoint(self._of_frames, frames, prompts, use_reentrant=False)
            return summed
        return self._of_frames(frames, prompts)

    def _of_frames(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        count = frames.shape[2]
        images = frames.transpose(1, 2).flatten(0, 1)
        rewards = self._reward(images, [prompt for prompt in prompts for _ in range(count)])
        given = tuple(rewards.shape) if isinstance(rewards, Tensor) else type(rewards).__name__
        if given != (len(images),):
            raise ValueError(f"PerFrame: reward must return a tensor ({len(images)},), got {given}")
        return rewards.float().view(len(frames), count).sum(dim=1)


def of_videos(reward: Reward, at_once: int = FRAMES_AT_ONCE) -> Reward:
    """The reward as one of videos: as it is where it takes them (`takes_videos`), else frame by frame."""
    return reward if takes_videos(reward) else PerFrame(reward, at_once)


def takes_videos(reward: Reward) -> bool:
    """Whether a reward is made for videos (B, 3, F, H, W), which it says by an attribute of this name."""
    return bool(getattr(reward, "takes_videos", False))
