"""Layers that turn an embedding into a score, in the aesthetic predictors and in ImageReward."""

from collections import OrderedDict
from pathlib import Path

from torch import nn

from ..checkpoint import read_checkpoint
from ..checks import RewardError


def linear_head(width: int, last: str = "7") -> nn.Sequential:
    """Return five linear layers, one after the other, that map embeddings (B, width) to scores (B, 1).

    The numbers leave room for the dropout layers of the training, as in the published checkpoints.

    Args:
        width: width of the embeddings.
        last: number of the last layer.
    """
    sizes = {"0": (width, 1024), "2": (1024, 128), "4": (128, 64), "6": (64, 16), last: (16, 1)}
    return nn.Sequential(OrderedDict((number, nn.Linear(*size)) for number, size in sizes.items()))


def read_linear_head(
    reward: str, file: Path, width: int, prefix: str, what: str, last: str = "7"
) -> nn.Sequential:
    """Return the layers in a published file of the layers alone.

    Args:
        reward: name of the reward, for errors.
        width, last: same as for `linear_head`.
        prefix: beginning of the names of the file's tensors.
        what: name of the layers and of the published file, for errors.

    Raises:
        RewardError: the file is broken, or holds other layers.
    """
    head = linear_head(width, last)
    tensors = {name.removeprefix(prefix): tensor for name, tensor in read_checkpoint(reward, file).items()}
    own = head.state_dict()
    for name in [*own, *tensors]:
        wanted, found = (tuple(state[name].shape) if name in state else None for state in (own, tensors))
        if found != wanted:
            raise RewardError(
                f"{reward}: {file} must be {what}, for embeddings of width {width}, with {prefix}{name} of "
                f"shape {wanted}, got {found}"
            )
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False)
