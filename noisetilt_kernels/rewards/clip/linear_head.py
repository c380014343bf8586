"""Layers that turn an embedding into a score, in the aesthetic predictor and in ImageReward."""

from torch import nn


def linear_head(width: int) -> nn.ModuleDict:
    """Return five linear layers that map embeddings (B, width) to (B, 1), to be applied one after the other.

    The numbers leave room for the dropout layers of the training, as in the published checkpoints.
    """
    sizes = {"0": (width, 1024), "2": (1024, 128), "4": (128, 64), "6": (64, 16), "7": (16, 1)}
    return nn.ModuleDict({number: nn.Linear(*size) for number, size in sizes.items()})
