"""No reward changes what another reward, the judges, the files or the noise see."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gaussian_flows import LatentFlow, LatentGenerator, brightness
from PIL import Image
from reward_checks import gradient_of, some_images
from torch import Tensor

from noisetilt_kernels import sampling
from noisetilt_kernels.checks import warn_once
from noisetilt_kernels.rewards import PerFrame, RewardSpec, WeightedSum, load_reward, parse_rewards
from noisetilt_kernels.rewards.registry import ENTRIES
from noisetilt_kernels.runs.execute import execute
from noisetilt_kernels.runs.folder import RunFolder, to_image
from noisetilt_kernels.runs.settings import ComputeOptions, Settings
from noisetilt_kernels.sampling import Result, SamplerOptions
from noisetilt_kernels.sampling.methods import Method


def halves(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Brightness of the halved images, computed in place."""
    images.mul_(0.5)
    return 2 * brightness(images, prompts)


def erases(images: Tensor, prompts: Sequence[str]) -> Tensor:
    values = brightness(images, prompts)
    images.detach().mul_(0)
    images.data.zero_()
    return values


def forgets(images: Tensor, prompts: Sequence[str]) -> Tensor:
    values = brightness(images, prompts)
    prompts.clear()  # type: ignore[attr-defined]
    return values


def reseeds(images: Tensor, prompts: Sequence[str]) -> Tensor:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    return brightness(images, prompts)


def turns_gradients_off(images: Tensor, prompts: Sequence[str]) -> Tensor:
    values = brightness(images, prompts)
    torch.set_grad_enabled(False)
    return values


RUDE = [halves, erases, forgets, reseeds, turns_gradients_off]
SAMPLERS: dict[str, Callable[..., Result]] = {
    "base": lambda *arguments: sampling.base(LatentFlow(), *arguments, steps=3, schedule="linear"),
    "ntrk": lambda *arguments: sampling.ntrk(LatentFlow(), *arguments, steps=3),
    "dps": lambda *arguments: sampling.dps(LatentFlow(), *arguments, steps=3, strength=1.0),
    "svdd": lambda *arguments: sampling.svdd(LatentFlow(), *arguments, steps=3, candidates=2),
    "wgnc": lambda *arguments: sampling.wgnc(LatentGenerator(), *arguments, iterations=3),
    "best_of_n": lambda *arguments: sampling.best_of_n(sampling.base, LatentFlow(), *arguments, n=2, steps=3),
}


@pytest.mark.parametrize("rude", RUDE)
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_are_not_disturbed(name: str, rude: Any) -> None:
    expected, actual = (SAMPLERS[name](reward, ["a", "b"]) for reward in (brightness, rude))
    assert torch.equal(actual.latents, expected.latents)
    torch.testing.assert_close(actual.rewards, expected.rewards)
    assert actual.prompts == expected.prompts


@pytest.mark.parametrize("rude", RUDE)
@pytest.mark.parametrize("first", [True, False])
def test_the_other_rewards_of_a_sum_are_not_disturbed(rude: Any, first: bool) -> None:
    def longest(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images[:, 0].mean(dim=(1, 2)) * torch.tensor([len(prompt) for prompt in prompts])

    names = ["rude", "polite"] if first else ["polite", "rude"]
    rewards = {"rude": (2.0, rude), "polite": (1.0, longest)}
    reward = WeightedSum({name: rewards[name] for name in names})
    images, prompts = some_images(2), ["a", "bcd"]
    seen, asked = images.clone(), list(prompts)
    torch.testing.assert_close(reward.parts(images, prompts)["polite"], longest(seen, asked))
    assert torch.equal(images, seen) and prompts == asked
    expected = gradient_of(longest, seen, asked) + 2 * gradient_of(brightness, seen, asked)
    torch.testing.assert_close(gradient_of(reward, images, prompts), expected)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("rude", [halves, erases, forgets])
@pytest.mark.parametrize("at_once", [1, 3])
def test_videos_are_not_disturbed(rude: Any, at_once: int) -> None:
    videos, prompts = torch.rand(1, 3, 4, 8, 8), ["a"]
    seen = videos.clone()
    expected = PerFrame(brightness, at_once)
    torch.testing.assert_close(PerFrame(rude, at_once)(videos, prompts), expected(seen, prompts))
    torch.testing.assert_close(
        gradient_of(PerFrame(rude, at_once), videos, prompts), gradient_of(expected, seen, prompts)
    )
    assert torch.equal(videos, seen) and prompts == ["a"]


@pytest.mark.parametrize("rude", RUDE)
def test_files_and_judges_are_not_disturbed(rude: Any, tmp_path: Path) -> None:
    settings = Settings(
        model="none",
        prompts=("a", "b"),
        method=Method("ntrk", {"steps": 2}),
        rewards=parse_rewards("brightness"),
        held_out=tuple(RewardSpec(name, ENTRIES["symmetry"]) for name in ("rude", "judge")),
    )
    steering = WeightedSum({"brightness": (1.0, rude)})
    judges = {"rude": rude, "judge": brightness}
    folder = RunFolder(tmp_path, settings.to_json())
    execute(settings, ComputeOptions(), folder, LatentFlow(), steering, judges)
    result = settings.method.sample(LatentFlow(), brightness, ["a", "b"], SamplerOptions())
    pictures = LatentFlow().decode(result.latents)
    for particle in range(2):
        with Image.open(tmp_path / "images" / f"{particle:04d}.png") as image:
            assert image.tobytes() == to_image(pictures[particle]).tobytes()
        assert folder.outcomes[particle].parts["judge"] == pytest.approx(float(result.rewards[particle]))


@pytest.mark.parametrize("name", ["brightness", "color", "digit", "digit-judge", "smoothness", "symmetry"])
def test_bundled_rewards_change_nothing(name: str) -> None:
    """They get no copies. `check_each_by_itself` tests the same of the rewards with weights."""
    images, prompts = some_images(2), ["a 7", "an 8"]
    seen = images.clone()
    load_reward(name)(images, prompts)
    assert torch.equal(images, seen) and prompts == ["a 7", "an 8"]


def test_only_custom_rewards_get_copies() -> None:
    addresses: list[int] = []

    def custom(images: Tensor, prompts: Sequence[str]) -> Tensor:
        addresses.append(images.data_ptr())
        return images.mean(dim=(1, 2, 3))

    images = some_images(2)
    WeightedSum({"a": (1.0, custom), "b": (1.0, custom)})(images, ["", ""])
    assert images.data_ptr() not in addresses


def test_half_precision_results_are_named() -> None:
    warn_once.cache_clear()
    reward = WeightedSum({"half": (1.0, lambda images, prompts: images.mean(dim=(1, 2, 3)).half())})
    with pytest.warns(RuntimeWarning, match=r"^WeightedSum: 'half' returns float16, which has 3 digits and"):
        values = reward(some_images(2), ["", ""])
    assert values.dtype == torch.float32
