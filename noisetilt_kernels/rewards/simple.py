"""Rewards without weights. All are smooth, and their range has length 1.

They take images (B, 3, H, W) with values in [0, 1] and B prompts, which are not used, and return float32
(B,). Colours are stored sRGB values, not linear light.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ..sampling import Reward
from .checks import check_batch

LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue (Rec. 709)."""

COLORS = {
    "black": "#000000",
    "white": "#ffffff",
    "gray": "#808080",
    "red": "#ff0000",
    "green": "#008000",
    "blue": "#0000ff",
    "yellow": "#ffff00",
    "cyan": "#00ffff",
    "magenta": "#ff00ff",
    "orange": "#ffa500",
    "purple": "#800080",
    "pink": "#ffc0cb",
    "brown": "#a52a2a",
}
"""Colours of CSS by name."""


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the mean luminance (Rec. 709 weights), (B,), from 0 (black) to 1 (white)."""
    check_batch("brightness", images, prompts)
    means = images.float().mean(dim=(2, 3))
    return means @ means.new_tensor(LUMINANCE)


def color(target: str = "red") -> Reward:
    """Return the reward for images with the mean colour `target`.

    The reward is minus the mean squared difference in red, green and blue, from -1 to 0. Only the mean colour
    of the image counts, not its content.

    Args:
        target: name of a colour (`COLORS`), or "#rrggbb".

    Raises:
        ValueError: `target` is neither.
    """
    code = COLORS.get(target.lower(), target)
    if not re.fullmatch("#[0-9a-fA-F]{6}", code):
        raise ValueError(f"color: target must be #rrggbb or one of {', '.join(COLORS)}, got {target!r}")
    rgb = torch.tensor([int(code[start : start + 2], 16) / 255 for start in (1, 3, 5)])

    def closeness(images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_batch("color", images, prompts)
        means = images.float().mean(dim=(2, 3))
        return -(means - rgb.to(means.device)).square().mean(dim=1)

    return closeness


def smoothness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return minus the mean squared difference of neighbouring pixels, -1 (chessboard) to 0 (one colour)."""
    check_batch("smoothness", images, prompts)
    images = images.float()
    down, right = images.diff(dim=2), images.diff(dim=3)
    differences = torch.cat([down.flatten(1), right.flatten(1)], dim=1)
    # a single pixel has no neighbour
    return -differences.square().sum(dim=1) / max(differences.shape[1], 1)


def symmetry(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return minus the mean squared difference between image and mirror image, -1 to 0 (symmetric)."""
    check_batch("symmetry", images, prompts)
    images = images.float()
    return -(images - images.flip(3)).square().mean(dim=(1, 2, 3))
