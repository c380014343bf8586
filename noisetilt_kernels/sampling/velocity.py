"""Velocity of a flow at given latents."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .batch import Batch
from .protocols import FlowModel


def velocity_of(
    batch: Batch,
    model: FlowModel,
    x: Tensor,
    t: float,
    prompts: Sequence[str],
    *,
    checkpointed: bool = False,
) -> Tensor:
    """Return v(x, t), float32, and count the forward.

    With `checkpointed` the graph keeps x alone, and the backward computes the forward again, which is not
    counted.

    Raises:
        ValueError: the velocity has another shape than x.
    """
    forward = model.velocity
    if checkpointed:
        forward = partial(checkpoint, model.velocity, use_reentrant=False, preserve_rng_state=False)
    velocity = batch.meter.forward(forward, x, t, prompts)
    if velocity.shape != x.shape:
        raise ValueError(
            f"{batch.method}: model.velocity must return {tuple(x.shape)}, the shape of its input, "
            f"got {tuple(velocity.shape)}"
        )
    return velocity.float()


def velocities_of(batch: Batch, model: FlowModel, x: Tensor, t: float) -> Tensor:
    """Return v(x, t) of any number of entries of each particle, x (B K, *shape), in micro-batches."""
    # A copy: a model may use the memory of its output again, and some samplers keep the velocity.
    return torch.cat([velocity_of(batch, model, part, t, prompts) for part, prompts in batch.parts(x)])
