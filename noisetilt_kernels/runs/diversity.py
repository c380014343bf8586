"""Diversity of the images of a run: measures as the user names them, and features of the image files.

A measure is named by itself, such as "vendi", or with the features that it compares, as in "vendi:digits".
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..checks import check_choice
from ..diversity import inception_score, pairwise_distance, vendi_score
from ..model_sources import BUNDLED
from ..rewards.features import FEATURES, Features


@dataclass(frozen=True)
class Measure:
    """Kind of measure.

    Attributes:
        function: function from the features (n, d) of a set of images to a number.
        each_prompt: True for a value of the images of each prompt, False for one of all images.
        features: features that the measure needs, or None if they can be chosen.
    """

    function: Callable[[Tensor], float]
    each_prompt: bool = True
    features: str | None = None


MEASURES: Mapping[str, Measure] = {
    "vendi": Measure(vendi_score),
    "pairwise": Measure(pairwise_distance),
    "inception": Measure(inception_score, each_prompt=False, features="inception"),
}
"""The measures by name."""

CHOICES = tuple(name for name in FEATURES if name not in {one.features for one in MEASURES.values()})
"""Names of the features that can be chosen."""


@dataclass(frozen=True)
class DiversitySpec:
    """Measure of diversity of a run. Made by `DiversitySpec.parse` or `parse_diversity`.

    Attributes:
        measure: name of the measure.
        features: name of the features.
        source: folder or hub id of the features' weights, or None.
    """

    measure: str
    features: str
    source: str | None = None

    @classmethod
    def parse(cls, name: str, model: str, sources: Mapping[str, str]) -> "DiversitySpec":
        """Parse the name of a measure.

        Args:
            name: one of `MEASURES`, alone or with one of `CHOICES` after a colon.
            model: name of the model. Without a colon, the features are `digits` for a bundled model, and
                `clip` for others.
            sources: folder or hub id of weights by name of the reward; features of that name use it too.

        Raises:
            ValueError: the measure or its features are unknown, or the measure does not take features.
        """
        measure, colon, features = name.partition(":")
        check_choice("diversity", "measure", measure, MEASURES)
        needed = MEASURES[measure].features
        if needed is not None and colon:
            raise ValueError(f"diversity: {measure} takes no features, got {name!r}; write {measure!r}")
        if colon:
            check_choice("diversity", "features", features, CHOICES)
        else:
            features = needed or ("digits" if model in BUNDLED else "clip")
        return cls(measure, features, FEATURES[features].source).with_sources(sources)

    def with_sources(self, sources: Mapping[str, str]) -> "DiversitySpec":
        """Return the spec with the source of its features' name; unchanged if there is none."""
        return self if self.source is None else replace(self, source=sources.get(self.features, self.source))

    @property
    def name(self) -> str:
        """Text that names the measure and its features, such as "vendi:clip"."""
        return self.measure if MEASURES[self.measure].features else f"{self.measure}:{self.features}"

    def value(self, features: Tensor) -> float:
        """Return the measure of a set of images with these features (n, d)."""
        return MEASURES[self.measure].function(features)

    def values(self, features: Mapping[str, Tensor], sets: Sequence[Sequence[int]]) -> dict[int, float]:
        """Return the measure by number of the prompt, or of all images together with the number 0.

        Args:
            features: features of the particles of a run by name, (particles, d) each.
            sets: particles of each prompt. A prompt without particles has no value, and neither have all
                images together then.
        """
        if not MEASURES[self.measure].each_prompt:
            sets = [[particle for of_prompt in sets for particle in of_prompt] if all(sets) else []]
        rows = features.get(self.features, ())
        return {
            number: self.value(rows[particles])
            for number, particles in enumerate(map(list, sets))
            if isinstance(rows, Tensor) and particles and max(particles) < len(rows)
        }


def parse_diversity(text: str, model: str, sources: Mapping[str, str]) -> tuple[DiversitySpec, ...]:
    """Return the measures of a text such as "vendi,pairwise:clip", see `DiversitySpec.parse`."""
    names = filter(None, map(str.strip, text.split(",")))
    return tuple(dict.fromkeys(DiversitySpec.parse(name, model, sources) for name in names))


@torch.no_grad()
def features_of_files(files: Iterable[Path], features: Features, device: str) -> Tensor:
    """Return the features (n, d), float32 on the CPU, of image files. Each image is computed alone."""
    rows = []
    for file in files:
        with Image.open(file) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32) / 255)
        rows.append(features(pixels.permute(2, 0, 1)[None].to(device)).float().cpu())
    return torch.cat(rows)
