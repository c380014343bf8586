"""Rewards without weights: values computed by hand, gradients, batches, errors."""

import re
from typing import Any

import pytest
import torch
from reward_checks import check_each_by_itself, check_gradient, some_images
from torch import Tensor

from noisetilt_kernels.rewards.simple import COLORS, brightness, color, smoothness, symmetry
from noisetilt_kernels.sampling import Reward

EVERY: dict[str, Reward] = {
    "brightness": brightness,
    "color": color("#3060f0"),
    "smoothness": smoothness,
    "symmetry": symmetry,
}


def plain(*rgb: float, height: int = 4, width: int = 6) -> Tensor:
    """Return one image (1, 3, height, width) of one colour."""
    return torch.tensor(rgb, dtype=torch.float32)[None, :, None, None].expand(1, 3, height, width).clone()


def grey(rows: list[list[float]]) -> Tensor:
    """Return one grey image with these values."""
    return torch.tensor(rows).expand(1, 3, -1, -1).clone()


@pytest.mark.parametrize("name", EVERY)
def test_gradients(name: str) -> None:
    check_gradient(EVERY[name], some_images(3, 12, 9), ["", "", ""])


@pytest.mark.parametrize("name", EVERY)
def test_no_image_influences_another(name: str) -> None:
    check_each_by_itself(EVERY[name], some_images(4, 9, 12), ["", "a", "b", "c"], tolerance=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    images = some_images(2, 64, 64).bfloat16()
    values = EVERY[name](images, ["", ""])
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, EVERY[name](images.float(), ["", ""]))


def test_brightness_is_luminance() -> None:
    for rgb, expected in {(1.0, 0.0, 0.0): 0.2126, (0.0, 1.0, 0.0): 0.7152, (0.0, 0.0, 1.0): 0.0722}.items():
        assert brightness(plain(*rgb), [""]).item() == pytest.approx(expected)
    assert brightness(plain(1, 1, 1), [""]).item() == pytest.approx(1)
    assert brightness(grey([[0.0, 1.0], [0.5, 0.5]]), [""]).item() == pytest.approx(0.5)


def test_color_is_that_of_the_mean() -> None:
    assert color()(plain(1, 0, 0), [""]).item() == 0
    assert color("cyan")(plain(1, 0, 0), [""]).item() == -1
    assert color("red")(plain(0.5, 0.3, 0), [""]).item() == pytest.approx(-(0.25 + 0.09) / 3)
    stripes = plain(1, 0, 0)
    stripes[:, :, ::2] = plain(0, 0, 1)[:, :, ::2]
    assert color("#800080")(stripes, [""]).item() == pytest.approx(0, abs=1e-4)
    assert color("#FFa500")(plain(1, 165 / 255, 0), [""]).item() == pytest.approx(0, abs=1e-12)
    for name, code in COLORS.items():
        assert color(name.upper())(plain(0.1, 0.2, 0.3), [""]) == color(code)(plain(0.1, 0.2, 0.3), [""])


def test_smoothness_counts_both_directions() -> None:
    assert smoothness(plain(0.3, 0.2, 0.9), [""]).item() == 0
    assert smoothness(grey([[0, 1, 0], [1, 0, 1], [0, 1, 0.0]]), [""]).item() == -1
    # of 12 differences the 6 across are 0.5
    assert smoothness(grey([[0, 0.5, 0], [0, 0.5, 0], [0, 0.5, 0.0]]), [""]).item() == pytest.approx(-0.125)
    assert smoothness(grey([[0, 0, 0], [0.5, 0.5, 0.5], [0, 0, 0.0]]), [""]).item() == pytest.approx(-0.125)
    assert smoothness(grey([[0.7]]), [""]).item() == 0
    assert smoothness(grey([[0.0, 1.0]]), [""]).item() == -1


def test_symmetry_is_left_to_right() -> None:
    assert symmetry(grey([[0.1, 0.9, 0.1], [0.7, 0.2, 0.7]]), [""]).item() == 0
    assert symmetry(grey([[1.0, 1.0], [0.0, 0.0]]), [""]).item() == 0
    assert symmetry(grey([[0.0, 1.0]]), [""]).item() == -1
    assert symmetry(grey([[0.0, 0.5, 0.5]]), [""]).item() == pytest.approx(-2 * 0.25 / 3)


@pytest.mark.parametrize("target", ["#ff00", "ff0000", "#gg0000", "crimson", "", "#ff0000 "])
def test_invalid_colors(target: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^color: target must be #rrggbb or one of .*, got {re.escape(repr(target))}"
    ):
        color(target)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("images", "prompts", "error", "message"),
    [
        (torch.rand(3, 4, 4), [""], ValueError, "images must be (B, 3, H, W), got (3, 4, 4)"),
        (torch.rand(1, 1, 4, 4), [""], ValueError, "images must be (B, 3, H, W), got (1, 1, 4, 4)"),
        (torch.rand(1, 3, 0, 4), [""], ValueError, "images must be (B, 3, H, W), got (1, 3, 0, 4)"),
        (
            torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
            [""],
            TypeError,
            "images must be a floating-point tensor",
        ),
        ([[0.5]], [""], TypeError, "images must be a floating-point tensor with values in [0, 1], got list"),
        (
            torch.rand(2, 3, 4, 4),
            [""],
            ValueError,
            "needs one prompt for each of the 2 images, got 1",
        ),
        (torch.rand(1, 3, 4, 4), "a", TypeError, "prompts must be a sequence of strings"),
        (torch.rand(1, 3, 4, 4), [1], TypeError, "prompts must be a sequence of strings"),
    ],
)
def test_mistakes(name: str, images: Any, prompts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{name}: {re.escape(message)}"):
        EVERY[name](images, prompts)
