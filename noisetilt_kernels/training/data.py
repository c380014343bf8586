"""Pictures of scikit-learn's handwritten digits, and prompts that name them."""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor
from torch.nn import functional

from ..rewards.digits import SIDE, WORDS

TEMPLATES = (
    "a handwritten {}",
    "handwritten {}",
    "a handwritten digit {}",
    "the handwritten digit {}",
    "a handwritten number {}",
    "the digit {}",
    "the number {}",
    "digit {}",
    "a {}",
    "{}",
)

MARGIN = 1.12
"""Ratio of the side of a picture to the side of its scan; it keeps strokes away from the border."""


class Digits(NamedTuple):
    """Scans of digits and their labels."""

    scans: Tensor
    """float32 (n, 1, 8, 8): ink is 1, paper is 0."""
    labels: Tensor
    """int64 (n,)"""


def load_split() -> tuple[Digits, Digits]:
    """Return three fifths of the digits, for the models, and the rest, for the independent judge."""
    data = load_digits()
    scans = torch.from_numpy(data.images).float()[:, None] / 16
    labels = torch.from_numpy(data.target).long()
    order = torch.randperm(len(labels), generator=Generator().manual_seed(0))
    cut = len(labels) * 3 // 5
    return Digits(scans[order[:cut]], labels[order[:cut]]), Digits(scans[order[cut:]], labels[order[cut:]])


def draw_pictures(scans: Tensor, generator: Generator, variety: float = 1.0) -> Tensor:
    """Draw pictures (n, 3, 32, 32) in [0, 1] of scans (n, 1, 8, 8), each randomly turned, sheared, scaled and
    moved.

    Args:
        scans: scans of digits, float32 (n, 1, 8, 8).
        generator: generator of the random changes.
        variety: factor on their standard deviations, which are 4 degrees, 8 %, 6 % and 1 pixel; 0 changes
            nothing.
    """
    n = len(scans)
    angle, shear, stretch_x, stretch_y, x, y = variety * torch.randn(6, n, generator=generator).clamp(-2, 2)
    angle, shear = 0.07 * angle, 0.08 * shear
    scale_x, scale_y = MARGIN * torch.exp(0.06 * stretch_x), MARGIN * torch.exp(0.06 * stretch_y)
    cos, sin = angle.cos(), angle.sin()
    pixel = 2 / SIDE
    affine = torch.stack(
        [
            torch.stack([scale_x * cos, shear - sin, pixel * x], dim=1),
            torch.stack([sin, scale_y * cos, pixel * y], dim=1),
        ],
        dim=1,
    )
    # enlarge to twice the size first, so that turning blurs less
    large = functional.interpolate(scans, size=(2 * SIDE, 2 * SIDE), mode="bicubic", align_corners=False)
    grid = functional.affine_grid(affine, [n, 1, SIDE, SIDE], align_corners=False)
    grey = functional.grid_sample(large, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return strokes(grey).expand(-1, 3, -1, -1)


def strokes(grey: Tensor) -> Tensor:
    """Sharpen the greys of a blurred scan to strokes with smooth edges, in [0, 1]."""
    low, high = torch.sigmoid(torch.tensor([-9 * 0.45, 9 * 0.55])).tolist()
    return ((torch.sigmoid(9 * (grey - 0.45)) - low) / (high - low)).clamp(0, 1)


def draw_prompts(labels: Tensor, generator: Generator) -> list[str]:
    """Draw a prompt for each label: a random template, with the digit as word or numeral."""
    choices = torch.randint(2 * len(TEMPLATES), (len(labels),), generator=generator).tolist()
    return [
        TEMPLATES[choice // 2].format(WORDS[label] if choice % 2 else str(label))
        for label, choice in zip(labels.tolist(), choices, strict=True)
    ]


def all_prompts() -> list[str]:
    """Return all prompts that `draw_prompts` can draw."""
    return [
        template.format(name)
        for template in TEMPLATES
        for digit, word in enumerate(WORDS)
        for name in (word, str(digit))
    ]
