"""Shapes and names of presets that the user may give, and the tensors that they stand for."""

import math
from typing import NamedTuple

from ..checks import did_you_mean, shown
from ..config import BATCHED_RANKS, DEFAULT_ALPHA, Sample, describe, resolve_preset, sample_of
from .inputs import FLUX

NAMED: dict[str, tuple[int, ...]] = {"flux": FLUX, "wan": (1, 16, 21, 60, 104)}
"""Shapes of the latents that a preset was made for, by its name."""


class Shape(NamedTuple):
    """Shape of a tensor that every operator is measured on.

    Attributes:
        sides: shape (N,), (B,N), (C,H,W), (B,C,H,W) or (B,C,F,H,W).
        sample: shape of one sample.
        batch: number of samples.
    """

    sides: tuple[int, ...]
    sample: Sample
    batch: int

    @property
    def text(self) -> str:
        """Shape such as "2x16x128x128"."""
        return "x".join(map(str, self.sides))

    @property
    def values(self) -> int:
        """Number of values of all samples."""
        return self.batch * self.sample.size

    def describe(self) -> str:
        """Describe how the operators take the shape, and the configuration of W."""
        one = "x".join(map(str, self.sides[1:] if len(self.sides) in BATCHED_RANKS else self.sides))
        config = resolve_preset("auto", self.sample, DEFAULT_ALPHA)
        samples = f"{self.batch} sample{'s' if self.batch > 1 else ''} of {one}"
        return f"{samples} (N = {self.sample.size:,}); W: {describe(config, self.sample)}"


def parse_shape(text: str) -> Shape:
    """Return a shape written as 16x64x64, or that of a preset.

    Raises:
        ValueError: the text is neither, the shape is none of the operators', or W cannot be applied to it.
    """
    sides = NAMED.get(text)
    if sides is None:
        parts = text.lower().split("x")
        if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
            raise ValueError(
                "profile: a shape must be written as 4096, 16x64x64, 2x16x128x128 or 1x16x21x90x160, or be "
                f"one of {', '.join(NAMED)}, got {shown(text)}{did_you_mean(text, NAMED)}"
            )
        sides = tuple(map(int, parts))
    return shape_of(sides)


def shape_of(sides: tuple[int, ...]) -> Shape:
    """Return a shape by its sides.

    Raises:
        ValueError: the shape is none of the operators', or W cannot be applied to it.
    """
    sample = sample_of("profile", sides, f"the shape {'x'.join(map(str, sides))}")
    resolve_preset("auto", sample, DEFAULT_ALPHA)
    return Shape(sides, sample, math.prod(sides) // sample.size)
