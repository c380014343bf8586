"""What makes a score of an embedding, in the aesthetic predictor and in ImageReward."""

from torch import nn


def linear_head(width: int) -> nn.ModuleDict:
    """Linear layers without anything between them, numbered as if the dropouts of the training were still there.

    Embeddings (B, width) -> (B, 1), one layer after the other.
    """
    sizes = {"0": (width, 1024), "2": (1024, 128), "4": (128, 64), "6": (64, 16), "7": (16, 1)}
    return nn.ModuleDict({number: nn.Linear(*size) for number, size in sizes.items()})
