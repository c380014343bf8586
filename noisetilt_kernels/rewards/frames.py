"""Rewards of videos from rewards of images, frame by frame."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..checks import check_integer
from ..sampling import Reward
from ..sampling.protocols import check_reward
from ..sampling.reward_call import call_reward
from .checks import check_videos

FRAMES_AT_ONCE = 4
"""Default number of frames of each video that are scored in one batch."""


class PerFrame:
    """Reward of videos (B, 3, F, H, W) that is the mean of a reward of images over the frames: float32 (B,).

    A few frames are scored at a time, and computed again in the backward pass. Memory holds the graph of
    these frames only, however long the video is; the time grows by about a third.

    Args:
        reward: reward of images (B, 3, H, W).
        at_once: number of frames of each video in one batch of the reward, at least 1.
        every: step between scored frames: 0, every, 2 every, ...; at least 1.

    Raises:
        ValueError, TypeError: an argument is not valid.
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
        """Return the sum of the rewards of frames (B, 3, f, H, W): (B,)."""
        if frames.requires_grad and torch.is_grad_enabled():
            # an early stop is an exception within the reward, which custom rewards would see
            summed: Tensor = checkpoint(
                self._of_frames, frames, prompts, use_reentrant=False, early_stop=False
            )
            return summed
        return self._of_frames(frames, prompts)

    def _of_frames(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        count = frames.shape[2]
        images = frames.transpose(1, 2).flatten(0, 1)
        repeated = [prompt for prompt in prompts for _ in range(count)]
        rewards = call_reward("PerFrame: reward", self._reward, images, repeated)
        return rewards.view(len(frames), count).sum(dim=1)


def of_videos(reward: Reward, at_once: int = FRAMES_AT_ONCE) -> Reward:
    """Return a reward of videos: the reward itself if it takes videos (`takes_videos`), else a `PerFrame`."""
    return reward if takes_videos(reward) else PerFrame(reward, at_once)


def takes_videos(reward: Reward) -> bool:
    """Return True if the attribute `takes_videos` marks the reward as one of videos (B, 3, F, H, W)."""
    return bool(getattr(reward, "takes_videos", False))
