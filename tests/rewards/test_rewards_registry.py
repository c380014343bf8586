"""Rewards by name, and weighted sums."""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gaussian_flows import LatentFlow
from reward_checks import check_gradient, some_images
from safetensors.torch import save_file
from torch import Tensor

from noisetilt_kernels import rewards, sampling
from noisetilt_kernels.rewards import (
    REWARDS,
    RewardSpec,
    WeightedSum,
    check_prompts,
    load_reward,
    load_rewards,
    parse_rewards,
    parse_weights,
)
from noisetilt_kernels.rewards.digits import CLASSIFIER_FILE, DigitClassifier
from noisetilt_kernels.rewards.registry import ENTRIES, default_source
from noisetilt_kernels.rewards.simple import brightness, color, symmetry


def test_names() -> None:
    assert REWARDS == (
        "aesthetic",
        "aesthetic-v2.5",
        "brightness",
        "clip",
        "color",
        "count",
        "count-error",
        "count-exact",
        "digit",
        "digit-judge",
        "hpsv2",
        "hpsv3",
        "imagereward",
        "mps",
        "pickscore",
        "smoothness",
        "symmetry",
        "videoreward",
        "vlm",
        "vqascore",
    )
    judges = ["count-error", "count-exact", "digit-judge"]
    assert [name for name in REWARDS if not ENTRIES[name].differentiable] == judges
    assert [name for name in REWARDS if ENTRIES[name].videos] == ["videoreward"]
    for entry in ENTRIES.values():
        assert entry.description
        assert "\n" not in entry.description


# ---- weights ----


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        ("brightness", {"brightness": 1.0}),
        ("aesthetic=1.0,brightness=-0.5", {"aesthetic": 1.0, "brightness": -0.5}),
        (" clip = 2e-1 , digit ", {"clip": 0.2, "digit": 1.0}),
        ("color=3,color:blue,color:#ff8000=-2", {"color": 3.0, "color:blue": 1.0, "color:#ff8000": -2.0}),
    ],
)
def test_weights(spec: str, weights: dict[str, float]) -> None:
    parsed = parse_weights(spec)
    assert parsed == weights
    assert list(parsed) == list(weights)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "spec must be of the form 'name=weight,name=weight', got ''"),
        ("clip,", "spec must be of the form 'name=weight,name=weight', got 'clip,'"),
        ("=2", "spec must be of the form"),
        ("beauty=2", "unknown reward 'beauty'; valid: 'aesthetic', 'aesthetic-v2.5'"),
        ("clip=1,clip=2", "each reward must be named once, got 'clip' twice"),
        ("clip=", "the weight of 'clip' must be a finite number, got ''"),
        ("clip=high", "the weight of 'clip' must be a finite number, got 'high'"),
        ("clip=nan", "the weight of 'clip' must be a finite number, got 'nan'"),
        ("clip=-inf", "the weight of 'clip' must be a finite number, got '-inf'"),
        ("clip:red=1", "reward 'clip' takes no argument, got 'clip:red'; only 'color', 'count', 'count-e"),
    ],
)
def test_invalid_weights(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^rewards: {re.escape(message)}"):
        parse_weights(spec)


def test_colors_are_checked_before_loading() -> None:
    for load in (parse_weights, load_reward, load_rewards):
        with pytest.raises(ValueError, match=r"^color: target must be #rrggbb or one of .*, got 'reddish'"):
            load("color:reddish")


# ---- loading ----


def test_rewards_by_name() -> None:
    images = some_images(2)
    assert load_reward("brightness") is brightness
    for name, expected in {
        "color": color("red"),
        "color:#3060f0": color("#3060f0"),
        "symmetry": symmetry,
    }.items():
        torch.testing.assert_close(
            load_reward(name)(images, ["", ""]), expected(images, ["", ""]), rtol=0, atol=0
        )


def test_weights_come_from_the_source(tmp_path: Path) -> None:
    classifier = DigitClassifier()
    save_file(classifier.state_dict(), tmp_path / CLASSIFIER_FILE)
    images = some_images(2)
    expected = classifier(images)[:, 4].detach()
    torch.testing.assert_close(load_reward("digit", source=str(tmp_path))(images, ["4", "four"]), expected)
    both = load_rewards("digit=2,brightness=-1", sources={"digit": str(tmp_path), "digit-judge": "elsewhere"})
    torch.testing.assert_close(both(images, ["4", "four"]), 2 * expected - brightness(images, ["", ""]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_reward("beauty"), "rewards: unknown reward 'beauty'; valid: 'aesthetic'"),
        (lambda: load_reward(None), "rewards: unknown reward None"),
        (lambda: load_reward("symmetry:up"), "rewards: reward 'symmetry' takes no argument"),
        (
            lambda: load_reward("brightness", source="x"),
            "rewards: reward 'brightness' has no weights that a source could name, got source 'x'",
        ),
        (lambda: load_rewards({}), "load_rewards: spec must name at least one reward, got none"),
        (lambda: load_rewards({"beauty": 1.0}), "rewards: unknown reward 'beauty'"),
        (
            lambda: load_rewards("clip", sources={"clop": "x"}),
            "rewards: unknown reward in sources 'clop'",
        ),
        (
            lambda: load_rewards({"symmetry": float("inf")}),
            "WeightedSum: the weight of 'symmetry' must be a finite",
        ),
    ],
)
def test_mistakes(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call()


def test_rewards_without_gradient_cannot_steer() -> None:
    message = (
        "rewards: reward 'digit-judge' has no gradient, so it can judge images but not steer; valid: "
        "'aesthetic', 'aesthetic-v2.5', 'brightness', 'clip', 'color', 'count', 'digit', 'hpsv2', 'hpsv3', "
        "'imagereward', 'mps', 'pickscore', 'smoothness', 'symmetry', 'videoreward', 'vlm', 'vqascore'"
    )
    # before anything is loaded: there is no such folder
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_rewards("digit,digit-judge=0.5", sources={"digit": "/nowhere", "digit-judge": "/nowhere"})


def test_prompts_are_checked_before_loading() -> None:
    check_prompts(["digit", "digit-judge", "color:red"], ["a seven", "3"])
    check_prompts(["brightness", "clip"], ["a cat"])
    for name in ("digit", "digit-judge"):
        with pytest.raises(ValueError, match=r"^digit_of: prompt must name exactly one digit.*'a cat'"):
            check_prompts(["brightness", name], ["3", "a cat"])
    with pytest.raises(ValueError, match=r"^rewards: unknown reward 'beauty'"):
        check_prompts(["beauty"], ["3"])


@pytest.mark.parametrize(
    "name",
    ["clip", "hpsv2", "hpsv3", "imagereward", "mps", "aesthetic", "vqascore", "videoreward", "vlm:depth"],
)
def test_without_network_a_hub_id_fails_soon(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The hub is asked once, not six times with pauses of 23 seconds in all."""
    code = (
        "import time; from noisetilt_kernels import rewards; import transformers; start = time.monotonic()\n"
        f"try:\n    rewards.load_reward({name!r})\n"
        "except rewards.RewardError as error:\n    print(time.monotonic() - start, error)"
    )
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert " is not a folder, and the hub cannot be reached; check the network, or run" in output
    assert float(output.split()[0]) < 60, output  # retries take minutes


def test_simple_rewards_do_not_import_transformers() -> None:
    code = (
        "import sys; from noisetilt_kernels import rewards; assert 'transformers' not in sys.modules; "
        "rewards.load_rewards('color:blue,symmetry'); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "name",
    [
        "aesthetic",
        "aesthetic-v2.5",
        "clip",
        "hpsv2",
        "hpsv3",
        "imagereward",
        "mps",
        "pickscore",
        "videoreward",
        "vlm:depth",
        "vqascore",
        "count",
        "count-exact",
    ],
)
def test_without_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    ours = tuple(
        f"noisetilt_kernels.rewards.{part}"
        for part in ("clip.", "counting.t2", "vision_language.", "loading")
    )
    for module in [name for name in sys.modules if name.startswith(ours)]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(
        rewards.RewardError,
        match=r'^load_reward: .* needs transformers .*; pip install "noisetilt-kernels\[diffusers\]"$',
    ):
        load_reward(name)


# ---- weighted sums ----


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Custom reward in float64."""
    return images[:, 0].double().mean(dim=(1, 2))


def test_a_sum_of_custom_and_bundled_rewards() -> None:
    images = some_images(3)
    reward = WeightedSum({"redness": (2, redness), "symmetry": (-0.5, symmetry)})
    parts = reward.parts(images, [""] * 3)
    assert list(parts) == ["redness", "symmetry"]
    torch.testing.assert_close(parts["redness"], redness(images, []).float())
    torch.testing.assert_close(parts["symmetry"], symmetry(images, [""] * 3))
    assert all(value.dtype == torch.float32 for value in parts.values())
    value = reward(images, [""] * 3)
    torch.testing.assert_close(value, 2 * parts["redness"] - 0.5 * parts["symmetry"])
    assert value.dtype == torch.float32
    check_gradient(reward, images, [""] * 3)


def test_a_sum_steers() -> None:
    def run(method: Callable[..., sampling.Result]) -> Tensor:
        return method(LatentFlow(), load_rewards("brightness=2,color:white"), ["", ""], steps=5).rewards

    assert (run(sampling.ntrk) > run(sampling.base)).all()


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({}, ValueError, "rewards must not be empty"),
        ({"a": (float("nan"), redness)}, ValueError, "the weight of 'a' must be a finite number, got nan"),
        ({"a": ("1", redness)}, ValueError, "the weight of 'a' must be a finite number, got '1'"),
        (
            {"a": (1.0, "redness")},
            TypeError,
            "'a' must be callable as reward(images, prompts), got 'redness'",
        ),
    ],
)
def test_invalid_sums(parts: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^WeightedSum: {re.escape(message)}"):
        WeightedSum(parts)


WRONG_RESULTS: list[tuple[Callable[..., Any], str]] = [
    (lambda i, p: i.mean(), r"\(\)"),
    (lambda i, p: i.mean(dim=(1, 2, 3))[:1], r"\(1,\)"),
    (lambda i, p: i.flatten(2).mean(dim=2), r"\(2, 3\)"),
    (lambda i, p: 3.0, "float"),
    (lambda i, p: [3.0, 4.0], "list"),
    (lambda i, p: i.mean(dim=(1, 2, 3)).numpy(), "ndarray"),
    (lambda i, p: None, "NoneType"),
    (lambda i, p: i.mean(dim=(1, 2, 3)).to(torch.complex64), "torch.complex64"),
]


def test_parts_with_wrong_results() -> None:
    wanted = r"^WeightedSum: 'wrong' must return a tensor \(2,\), one number for each image, got"
    for wrong, given in WRONG_RESULTS:
        with pytest.raises((TypeError, ValueError), match=f"{wanted} {given}$"):
            WeightedSum({"wrong": (1.0, wrong)})(some_images(2), ["", ""])


@pytest.mark.parametrize(
    ("name", "expected"), [("brightness", False), ("color:blue", False), ("my.module:name", True)]
)
def test_has_weights(name: str, expected: bool) -> None:
    assert RewardSpec.parse(name).has_weights is expected
    assert RewardSpec.parse("clip").has_weights and RewardSpec.parse("videoreward:motion").has_weights


def test_a_reward_is_parsed_once() -> None:
    sources = {"clip": "a/b", "videoreward": "folder", "my.module": "unused"}
    clip, motion, custom = parse_rewards("clip=2, videoreward:motion,my.module:name=-1", sources)
    assert clip == RewardSpec("clip", ENTRIES["clip"], None, 2.0, "a/b")
    assert motion == RewardSpec("videoreward:motion", ENTRIES["videoreward"], "motion", 1.0, "folder")
    assert (custom.name, custom.argument, custom.weight, custom.source) == (
        "my.module:name",
        None,
        -1.0,
        None,
    )
    assert custom.entry.custom and custom.has_weights and not custom.videos
    assert motion.videos and not clip.videos
    assert parse_rewards({"clip": 2.0}, sources) == (clip,)
    assert RewardSpec.parse("clip").source == default_source("clip") == "openai/clip-vit-large-patch14"
    assert RewardSpec.parse("brightness").source is None
    assert RewardSpec.parse("brightness").load() is brightness
    for sources in ({"brightness": "x"}, {"brightness": ""}):
        with pytest.raises(
            ValueError, match=r"^rewards: reward 'brightness' has no weights .*; leave the source"
        ):
            RewardSpec.parse("brightness", sources=sources)


def test_a_reward_without_weights_has_no_default_source() -> None:
    with pytest.raises(ValueError, match=r"^default_source: reward 'brightness' has no weights"):
        default_source("brightness")
