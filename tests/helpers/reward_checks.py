"""Properties of every reward: it is differentiable, and scores each image independently of the others."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from noisetilt_kernels.checks import warn_once
from noisetilt_kernels.rewards import RewardError, load_reward
from noisetilt_kernels.sampling import Reward


def some_images(count: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    """Return smooth images (count, 3, height, width) from 0.2 to 0.8; resizing keeps them within [0, 1]."""
    noise = torch.rand(count, 3, 6, 5, generator=torch.Generator().manual_seed(seed))
    return 0.2 + 0.6 * torch.nn.functional.interpolate(noise, size=(height, width), mode="bilinear")


def eight_bits(images: Tensor) -> tuple[Tensor, list[Image.Image]]:
    """Return images rounded to 8 bits, as a tensor and as PIL images."""
    numbers = (images * 255).round().byte()
    return numbers.float() / 255, [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in numbers]


def gradient_of(reward: Reward, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the gradient of the sum of the rewards, in the shape of `images`."""
    images = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(images, prompts).sum(), images)
    return gradient


def check_gradient(reward: Reward, images: Tensor, prompts: Sequence[str], size: float = 0.01) -> None:
    """Compare the gradient with finite differences of fourth order, along itself and along random directions.

    Args:
        size: largest change of a pixel.
    """
    gradient = gradient_of(reward, images, prompts)
    assert gradient.dtype == images.dtype
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().amax(dim=1) > 0).all()
    directions = [gradient, *torch.randn(3, *images.shape, generator=torch.Generator().manual_seed(1))]
    for direction in directions:
        direction = direction / direction.flatten(1).abs().amax(dim=1)[:, None, None, None]
        with torch.no_grad():
            a, b, c, d = (reward(images + size * k * direction / 2, prompts).double() for k in (2, 1, -1, -2))
        expected = (8 * (b - c) - (a - d)) / (6 * size)
        actual = (gradient.double() * direction).flatten(1).sum(dim=1)
        scale = gradient.flatten(1).norm(dim=1) * direction.flatten(1).norm(dim=1)
        assert ((actual - expected).abs() / scale).max() < 2e-3, (actual, expected, scale)


def check_each_by_itself(reward: Reward, images: Tensor, prompts: Sequence[str], tolerance: float) -> None:
    """Check that an image has the same float32 reward and the same gradient alone and in a batch.

    Images and prompts must not be changed: bundled rewards get no copies.
    """
    before = images.clone(), list(prompts)
    values, gradient = reward(images, prompts), gradient_of(reward, images, prompts)
    assert torch.equal(images, before[0]) and list(prompts) == before[1]
    assert values.dtype == torch.float32
    assert values.shape == (len(images),)
    assert values.std() > 10 * tolerance, "the images are too similar to test anything"
    for index, prompt in enumerate(prompts):
        one = images[index : index + 1]
        torch.testing.assert_close(reward(one, [prompt])[0], values[index], rtol=0, atol=tolerance)
        expected = gradient_of(reward, one, [prompt])[0]
        difference = (expected - gradient[index]).abs().max()
        assert difference < 1e-3 * expected.abs().max()


def check_mistakes(reward: Reward, name: str) -> None:
    """Check the errors for images of a wrong shape or range, and for a wrong number of prompts."""
    with pytest.raises(ValueError, match=rf"^{name}: images must be \(B, 3, H, W\), got \(1, 4, 8, 8\)"):
        reward(torch.rand(1, 4, 8, 8), [""])
    with pytest.raises(ValueError, match=rf"^{name}: needs one prompt for each of the 2 images, got 1"):
        reward(some_images(2), [""])
    images = some_images(2)
    for values, given in ((images * 255, r"\d+(\.\d+)? to \d+"), (images * 2 - 1.2, r"-0\.\d+ to 0\.\d+")):
        with pytest.raises(ValueError, match=rf"^{name}: images must have values in \[0, 1\], got {given}"):
            reward(values, ["a", "b"])
    for value in (float("nan"), float("inf")):
        strange = images.clone()
        strange[0, 0, 0, 0] = value
        reward(strange, ["a", "b"])  # samplers react to values that are not finite


def check_cut(reward: Reward, name: str, length: int) -> None:
    """Check that a prompt with more than `length` tokens gives one warning, and that it is cut there."""
    warn_once.cache_clear()
    images = some_images(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fits = reward(images, ["ab" * ((length - 2) // 2)])  # a token for each letter
    with pytest.warns(RuntimeWarning, match=rf"^{name}: a prompt has more than {length} tokens") as caught:
        for end in ("b", "cde"):
            reward(images, ["ab" * length + end])
    assert len(caught) == 1
    first, second = (reward(images, ["ab" * length + end]) for end in ("c", "def"))
    assert torch.equal(first, second) and not torch.equal(first, fits)


def check_incomplete(
    name: str,
    source: Path,
    tensors: Mapping[str, Tensor],
    write: Callable[[dict[str, Tensor]], object],
    unused: str = "nothing",
    same_names: bool = True,
    sizes_are_read: bool = False,
) -> None:
    """Check that a reward names each tensor that is missing or has another shape. No random weights are used.

    Args:
        name, source: reward and its source.
        tensors: complete weights.
        write: function that writes other weights into the source.
        unused: part of the names of tensors that the reward does not use.
        same_names: the error has the names in the file, not those of transformers.
        sizes_are_read: the model has the sizes of the tensors, so that another tensor may not fit.
    """
    used = [key for key in tensors if unused not in key and tensors[key].ndim]
    cases: dict[str, dict[str, Tensor]] = {"": {}}
    for key in used[:: max(len(used) // 12, 1)]:
        rest = {other: tensor for other, tensor in tensors.items() if other != key}
        cases[f"{key}, missing"] = rest
        cases[f"{key}, larger"] = {**rest, key: torch.zeros([size + 1 for size in tensors[key].shape])}
    for case, changed in cases.items():
        write(changed or {"other": torch.zeros(1)})
        with pytest.raises(RewardError) as caught:
            load_reward(name, source=str(source))
        message = str(caught.value)
        assert message.startswith(f"{name}: ") and "\n" not in message
        key, _, change = case.partition(", ")
        if same_names and not (sizes_are_read and change == "larger"):
            assert key in message, (case, message)


class Evil:
    """Object that runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('it ran')",)


def check_pickle(name: str, source: Path, file: Path) -> None:
    """Check that a file of weights that holds code is refused in one sentence, and the code is not run."""
    for content in ({"weight": Evil()}, Evil()):
        torch.save(content, file)
        with pytest.raises(RewardError, match=f"^{name}: ") as caught:
            load_reward(name, source=str(source))
        assert "\n" not in str(caught.value)
