"""Questions for the reward `vlm`, and the drawings over the image that they are about.

Importing this module imports neither transformers nor PIL.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...checks import check_choice, shown

if TYPE_CHECKING:
    from PIL.Image import Image

RED = (255, 0, 0)
FINER = 4
"""Drawings are made at this multiple of the image's size and then reduced, for smooth edges."""
DOT, LABEL, LINE = 0.02, 0.08, 0.008
"""Radius of a dot, height of its label and width of a line, as fractions of the image's shorter side."""

ENDING = "Answer with Yes or No."
"""Last sentence of every question."""


def _check_fractions(what: str, values: Any) -> None:
    """Raise ValueError unless the values are two numbers from 0 to 1."""
    if (
        isinstance(values, str)
        or not isinstance(values, Sequence)
        or len(values) != 2
        or not all(type(one) in (int, float) and math.isfinite(one) and 0 <= one <= 1 for one in values)
    ):
        raise ValueError(f"vlm: {what} must have two numbers from 0 to 1, got {shown(values)}")


@dataclass(frozen=True)
class Points:
    """Red dots with a label above each.

    Attributes:
        places: horizontal and vertical place of each dot by its label, from (0, 0) at the top left of the
            image to (1, 1) at the bottom right.

    Raises:
        ValueError, TypeError: a place is outside of the image or not two numbers.
    """

    places: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {"A": (0.3, 0.5), "B": (0.7, 0.5)}
    )

    def __post_init__(self) -> None:
        if not isinstance(self.places, Mapping) or not self.places:
            raise TypeError(
                f"vlm: points must be places by their labels, such as {{'A': (0.3, 0.5)}}, got "
                f"{shown(self.places)}"
            )
        for label, place in self.places.items():
            _check_fractions(f"the point {label!r}", place)

    def draw(self, height: int, width: int) -> "Image":
        """Return the drawing, in RGBA."""
        from PIL import ImageFont

        image, pen, short = _canvas(height, width)
        font = ImageFont.load_default(LABEL * short)
        radius = DOT * short
        for label, (across, down) in self.places.items():
            x, y = across * image.width, down * image.height
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=RED)
            # below the dot if there is no room above
            away = -1 if y > (LABEL + 2 * DOT) * short else 1
            pen.text((x, y + away * (2 * radius + LABEL * short / 2)), label, RED, font, anchor="mm")
        return image.resize((width, height))


@dataclass(frozen=True)
class Line:
    """A red line from the left edge of the image to the right one.

    Attributes:
        left, right: heights at which it begins and ends, from 0 at the top to 1 at the bottom.

    Raises:
        ValueError, TypeError: a height is outside of the image or not a number.
    """

    left: float = 0.5
    right: float = 0.5

    def __post_init__(self) -> None:
        _check_fractions("the line", (self.left, self.right))

    def draw(self, height: int, width: int) -> "Image":
        """Return the drawing, in RGBA."""
        image, pen, short = _canvas(height, width)
        ends = ((0, self.left * image.height), (image.width, self.right * image.height))
        pen.line(ends, RED, max(round(LINE * short), FINER))
        return image.resize((width, height))


@dataclass(frozen=True)
class Picture:
    """A picture from a file, resized to the image. Without transparency, its pure white is transparent.

    Attributes:
        file: picture in a format that PIL reads, such as PNG.

    Raises:
        ValueError: there is no such file.
    """

    file: Path

    def __post_init__(self) -> None:
        if not Path(self.file).is_file():
            raise ValueError(f"vlm: there is no picture {self.file}; correct the path")

    def draw(self, height: int, width: int) -> "Image":
        """Return the picture, in RGBA.

        Raises:
            ValueError: the file is not a picture.
        """
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(self.file) as opened:
                has_alpha = opened.has_transparency_data
                image = opened.convert("RGBA")
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"vlm: {self.file} is not a picture that PIL reads ({error})") from None
        if not has_alpha:
            values = np.array(image)
            values[..., 3] = 255 * (values[..., :3] != 255).any(axis=-1)
            image = Image.fromarray(values)
        return image.resize((width, height))


Overlay = Points | Line | Picture


def composite(images: Tensor, overlay: Overlay) -> Tensor:
    """Return images (B, 3, H, W) with values in [0, 1] with the drawing over them; differentiable."""
    drawn = torch.from_numpy(np.array(overlay.draw(*images.shape[2:]))).to(images) / 255
    color, alpha = drawn[..., :3].permute(2, 0, 1), drawn[..., 3]
    return images * (1 - alpha) + color * alpha


@dataclass(frozen=True)
class Question:
    """A question about an image, to be answered with Yes or No.

    Attributes:
        text: the question, without the sentence `ENDING`; {} stands for the prompt.
        answer: wanted answer, "Yes" or "No".
        overlay: drawing over the image, or None.

    Raises:
        ValueError: the text does not end with a question mark, or the answer is another one.
    """

    text: str
    answer: str = "Yes"
    overlay: Overlay | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.endswith("?"):
            raise ValueError(f"vlm: question must be a text that ends with '?', got {shown(self.text)}")
        check_choice("vlm", "answer", self.answer, ("Yes", "No"))

    def asked(self, prompt: str) -> str:
        """Return the whole text of the question about an image for this prompt."""
        return f"{self.text.replace('{}', prompt)} {ENDING}"


QUESTIONS = {
    "depth": Question("Is Point A much closer to the camera than Point B?", overlay=Points()),
    "horizon": Question("Does the overlaid red line represent the horizon of the scene?", overlay=Line()),
}
"""Bundled questions by name."""


def question_of(argument: str) -> Question:
    """Return the question of a reward's argument: a name of `QUESTIONS`, QUESTION? or FILE.json.

    A file has the fields "question", and if wanted "answer" and "overlay". The overlay is one of
    {"points": {"A": [0.3, 0.5], "B": [0.7, 0.5]}}, {"line": [0.4, 0.5]} and {"picture": "FILE.png"}, with a
    path from the folder of the file.

    Raises:
        ValueError: the argument is something else, or the file does not exist or has other content.
    """
    if argument in QUESTIONS:
        return QUESTIONS[argument]
    if argument.endswith(".json"):
        return _read(Path(argument).expanduser())
    if not argument.endswith("?"):
        raise ValueError(
            f"vlm: the argument must be {' or '.join(QUESTIONS)}, a question that ends with '?' and has no "
            f"comma and no equals sign, or FILE.json, got {argument!r}; write other questions into a file"
        )
    return Question(argument)


def _read(file: Path) -> Question:
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"vlm: {file} cannot be read as JSON ({error})") from None
    if not isinstance(values, dict) or "question" not in values:
        raise ValueError(f'vlm: {file} must hold an object with a "question", got {shown(values)}')
    for name in values:
        check_choice("vlm", f"field in {file}", name, ("question", "answer", "overlay"))
    try:
        overlay = _overlay(values["overlay"], file.parent) if values.get("overlay") is not None else None
        return Question(values["question"], values.get("answer", "Yes"), overlay)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error}, in {file}") from None


def _overlay(values: Any, folder: Path) -> Overlay:
    if not isinstance(values, dict) or len(values) != 1:
        raise ValueError(
            f'vlm: overlay must be {{"points": ...}}, {{"line": [LEFT, RIGHT]}} or {{"picture": FILE}}, got '
            f"{shown(values)}"
        )
    ((kind, content),) = values.items()
    check_choice("vlm", "overlay", kind, ("points", "line", "picture"))
    if kind == "points":
        return Points(content)
    if kind == "picture":
        return Picture(folder / str(content))
    _check_fractions("the line", content)
    return Line(*content)


def _canvas(height: int, width: int) -> tuple["Image", Any, int]:
    """Return a transparent image, its pen, and the length of its shorter side."""
    from PIL import Image, ImageDraw

    # transparent red, so that edges have no other colour
    image = Image.new("RGBA", (FINER * width, FINER * height), (*RED, 0))
    return image, ImageDraw.Draw(image), FINER * min(height, width)
