"""Features of images that measures of diversity compare, by name. Weights are loaded by `load_features`."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from ..hub import first_sentence
from .checks import RewardError
from .digits import scan
from .registry import default_source

Features = Callable[[Tensor], Tensor]
"""Function from images (B, 3, H, W) in [0, 1] to one row of numbers for each image, float32 (B, d)."""


_TORCHVISION = f"install the torchvision that belongs to torch {torch.__version__}"


@dataclass(frozen=True)
class FeaturesEntry:
    """Kind of features.

    Attributes:
        load: function (source, device) that returns the features.
        source: default folder or hub id of the weights; a source of the reward of the same name replaces it.
            None if no source can be named.
        package: package that is needed beyond those of the library, or None.
        install: how to install it.
    """

    load: Callable[[str, str | torch.device], Features]
    source: str | None = None
    package: str | None = None
    install: str = ""


def _clip(source: str, device: str | torch.device) -> Features:
    from .clip.vision import ClipEmbedding

    return ClipEmbedding(source, device)


def _inception(source: str, device: str | torch.device) -> Features:
    try:
        from .inception import InceptionProbabilities
    except (ImportError, OSError, RuntimeError) as error:  # of a torchvision for another torch
        raise RewardError(
            f"features: torchvision cannot be imported ({first_sentence(error)}); {_TORCHVISION}"
        ) from None
    return InceptionProbabilities(device)


FEATURES: Mapping[str, FeaturesEntry] = {
    "clip": FeaturesEntry(
        _clip, default_source("clip"), "transformers", 'pip install "noisetilt-kernels[diffusers]"'
    ),
    "digits": FeaturesEntry(lambda source, device: scan),
    "inception": FeaturesEntry(
        _inception,
        package="torchvision",
        install=_TORCHVISION,
    ),
}
"""Features by name: image embeddings of CLIP, means of grey in a grid of 8 x 8, class probabilities."""


def check_features(name: str) -> None:
    """Raise RewardError if the package that the features need is not installed; nothing is imported."""
    entry = FEATURES[name]
    if entry.package is not None and find_spec(entry.package) is None:
        raise RewardError(f"features: {name} needs the package {entry.package}; {entry.install}")


def load_features(name: str, source: str | None = None, device: str | torch.device = "cpu") -> Features:
    """Return features by their name in `FEATURES`.

    Args:
        name: one of `FEATURES`.
        source: folder or hub id of the weights; None is the default one.
        device: device of the images.

    Raises:
        RewardError: a package is missing, or the weights cannot be loaded.
    """
    check_features(name)
    return FEATURES[name].load(os.path.expanduser(source or FEATURES[name].source or ""), device)
