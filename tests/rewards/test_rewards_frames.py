"""Rewards of images applied to videos, frame by frame."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from reward_checks import gradient_of, some_images
from torch import Tensor

from noisetilt_kernels.rewards import DigitClassifier
from noisetilt_kernels.rewards.frames import PerFrame, of_videos, takes_videos
from noisetilt_kernels.rewards.simple import brightness

PROMPTS = ["0.3", "0.9"]


def target(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Reward that is nonlinear in the image and in the number that the prompt contains."""
    numbers = torch.tensor([float(prompt) for prompt in prompts])
    return (images.square().mean(dim=(1, 2, 3)) - numbers).square() + images[:, 0, 0, 0].sin()


def some_videos(count: int = 2, frames: int = 7) -> Tensor:
    """Return videos (count, 3, frames, 10, 6) with different frames."""
    return some_images(count * frames, 10, 6).unflatten(0, (count, frames)).transpose(1, 2)


def mean_over_frames(videos: Tensor, prompts: Sequence[str], every: int = 1) -> Tensor:
    """Compute the reward image by image, as defined."""
    rows = [
        torch.stack([target(frame[None], [prompt])[0] for frame in video.unbind(1)[::every]]).mean()
        for video, prompt in zip(videos, prompts, strict=True)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("every", [1, 2, 3, 6, 20])
@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 50])
def test_it_is_the_mean_for_any_number_at_once(at_once: int, every: int) -> None:
    videos, reward = some_videos(), PerFrame(target, at_once, every)
    values = reward(videos, PROMPTS)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, mean_over_frames(videos, PROMPTS, every), rtol=1e-6, atol=1e-7)
    gradient = gradient_of(reward, videos, PROMPTS)
    expected = gradient_of(lambda v, p: mean_over_frames(v, p, every), videos, PROMPTS)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)
    judged = (gradient.abs().amax(dim=(0, 1, 3, 4)) > 0).nonzero().flatten().tolist()
    assert judged == list(range(0, 7, every))


def test_gradients_are_those_of_differences() -> None:
    videos, reward = some_videos().double(), PerFrame(target, 2)
    gradient = gradient_of(lambda v, p: reward(v, p).double(), videos.float(), PROMPTS).double()
    direction = torch.randn(videos.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    size = 1e-3
    ahead, behind = (mean_over_frames(videos + sign * size * direction, PROMPTS) for sign in (1, -1))
    actual = (gradient * direction).flatten(1).sum(dim=1)
    torch.testing.assert_close(actual, (ahead - behind) / (2 * size), rtol=1e-4, atol=1e-6)


def test_no_video_influences_another() -> None:
    videos, reward = some_videos(), PerFrame(target, 3)
    values = reward(videos, PROMPTS)
    for index, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(reward(videos[index : index + 1], [prompt])[0], values[index])


def test_frames_come_a_few_at_a_time_each_with_its_prompt() -> None:
    seen: list[tuple[tuple[int, ...], list[str]]] = []

    def looking(images: Tensor, prompts: Sequence[str]) -> Tensor:
        seen.append((tuple(images.shape), list(prompts)))
        return images.mean(dim=(1, 2, 3))

    PerFrame(looking, 2)(some_videos(2, 3), ["a", "b"])
    assert seen == [((4, 3, 10, 6), ["a", "a", "b", "b"]), ((2, 3, 10, 6), ["a", "b"])]


# ---- memory ----


def kept(reward: PerFrame, videos: Tensor) -> int:
    """Return the number of bytes that the graph keeps, without the videos."""
    videos = videos.clone().requires_grad_()
    seen: dict[int, int] = {videos.untyped_storage().data_ptr(): 0}
    alive: list[Tensor] = []  # keeps every address unique

    def pack(tensor: Tensor) -> Tensor:
        seen.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = reward(videos, PROMPTS)
    assert value.requires_grad
    return sum(seen.values())


def test_memory_does_not_grow_with_the_frames() -> None:
    network = DigitClassifier().requires_grad_(False)

    def certainty(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return network(images)[:, 3]

    frame = sum(tensor.nbytes for tensor in some_videos(2, 1))
    few, many = (kept(PerFrame(certainty), some_videos(2, frames)) for frames in (4, 40))
    assert many - few < 5 * frame
    # without recomputation the memory grows, and the count shows it
    plain = [kept(PerFrameOfOne(certainty), some_videos(2, frames)) for frames in (4, 40)]
    assert plain[1] - plain[0] > 100 * frame


class PerFrameOfOne(PerFrame):
    """PerFrame that keeps the graphs of all frames."""

    def _sum(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        return self._of_frames(frames, prompts)


def test_frames_are_judged_again_in_the_backward_alone() -> None:
    graphs: list[bool] = []

    def counting(images: Tensor, prompts: Sequence[str]) -> Tensor:
        graphs.append(torch.is_grad_enabled() and images.requires_grad)
        return target(images, prompts)

    reward, videos = PerFrame(counting, 2), some_videos()
    with torch.no_grad():
        reward(videos.requires_grad_(), PROMPTS)
    assert graphs == [False] * 4
    reward(videos.detach(), PROMPTS)
    assert graphs == [False] * 8
    reward(videos, PROMPTS).sum().backward()
    assert graphs[8:] == [True] * 8


# ---- which rewards take videos ----


class OfVideos:
    takes_videos = True

    def __call__(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return videos.mean(dim=(1, 2, 3, 4))


def test_rewards_of_videos_stay_as_they_are() -> None:
    reward = OfVideos()
    assert takes_videos(reward)
    assert of_videos(reward) is reward
    assert not takes_videos(brightness)
    wrapped = of_videos(brightness, 3)
    assert takes_videos(wrapped)
    assert of_videos(wrapped) is wrapped
    videos = some_videos()
    torch.testing.assert_close(wrapped(videos, PROMPTS), PerFrame(brightness)(videos, PROMPTS))


def test_takes_videos_may_be_false() -> None:
    reward = OfVideos()
    reward.takes_videos = False
    assert not takes_videos(reward)
    assert isinstance(of_videos(reward), PerFrame)


# ---- mistakes ----


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("brightness",), TypeError, "reward must be callable as reward(images, prompts), got 'brightness'"),
        ((target, 0), ValueError, "at_once must be at least 1, got 0"),
        ((target, 2.0), TypeError, "at_once must be an integer, got 2.0"),
        ((target, 2, 0), ValueError, "every must be at least 1, got 0"),
        ((target, 2, True), TypeError, "every must be an integer, got True"),
    ],
)
def test_arguments(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        PerFrame(*arguments)
    assert str(caught.value).startswith(f"PerFrame: {message}")


@pytest.mark.parametrize(
    ("videos", "prompts", "error", "message"),
    [
        (some_videos()[0], ["a"], ValueError, "videos must be (B, 3, F, H, W), got (3, 7, 10, 6)"),
        (some_videos()[:, :2], PROMPTS, ValueError, "videos must be (B, 3, F, H, W), got (2, 2, 7, 10, 6)"),
        (
            some_videos()[:, :, :0],
            PROMPTS,
            ValueError,
            "videos must be (B, 3, F, H, W), got (2, 3, 0, 10, 6)",
        ),
        (
            some_videos().byte(),
            PROMPTS,
            TypeError,
            "videos must be a floating-point tensor with values in [0, 1], got",
        ),
        (
            some_videos(),
            PROMPTS[:1],
            ValueError,
            "needs one prompt for each of the 2 videos, got 1",
        ),
        (some_videos(), "ab", TypeError, "prompts must be a sequence of strings"),
        (some_videos() * 255, PROMPTS, ValueError, "videos must have values in [0, 1], got "),
    ],
)
def test_videos(videos: Tensor, prompts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        PerFrame(target)(videos, prompts)
    assert str(caught.value).startswith(f"PerFrame: {message}")


@pytest.mark.parametrize(
    ("wrong", "given"),
    [(lambda i, p: i.mean(), r"\(\)"), (lambda i, p: i[:2, 0, 0, 0], r"\(2,\)"), (lambda i, p: 3.0, "float")],
)
def test_rewards_with_wrong_results(wrong: Any, given: str) -> None:
    wanted = r"^PerFrame: reward must return a tensor \(6,\), one number for each image, got"
    with pytest.raises((TypeError, ValueError), match=f"{wanted} {given}$"):
        PerFrame(wrong, 3)(some_videos(), PROMPTS)
