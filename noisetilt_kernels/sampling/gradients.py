"""Gradients of the reward, in two pieces: through decoder and reward, then through the model.

The first piece ends in a vector that the second one pulls back (a vector-Jacobian product), so that the graph of the
reward is gone before the model's backward starts, and the time of each is known.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .flow import velocity_of
from .protocols import FlowModel, OneStepModel
from .run import Batch
from .steps import Step, denoised


class Guidance(NamedTuple):
    """A micro-batch's rewards and their gradients at some x (B, *shape)."""

    output: Tensor
    """Of the model at x, without a graph: the velocity, or the images."""
    rewards: list[float]
    gradient: Tensor
    """(B, *shape)"""
    norms: list[float]
    """Of each gradient."""
    fallbacks: list[str | None]
    """Why a particle has no usable gradient, or None."""

    @property
    def usable(self) -> Tensor:
        """(B, 1, ..., 1): which gradients are finite and not zero."""
        usable = torch.tensor([reason is None for reason in self.fallbacks], device=self.gradient.device)
        return usable.view(-1, *[1] * (self.gradient.dim() - 1))


def flow_guidance(batch: Batch, model: FlowModel, x: Tensor, step: Step) -> Guidance:
    """Gradient in x_t of r(x0_hat), with the velocity that the step itself needs: one forward for both.

    With v = v(x_t) and h the gradient of r at x0_hat = x_t - t v, it is h - t (dv/dx)^T h.

    Raises:
        NonFiniteError: a reward or gradient is not finite, unless plain noise is wanted.
        ValueError: the model or the reward breaks off the graph.
    """
    x, velocity = _with_graph(batch, lambda x: velocity_of(batch, model, x, step.t, batch.prompts), x)
    rewards, at_denoised = _of_images(batch, model.decode, denoised(x, velocity, step.t))
    gradient = at_denoised - step.t * _pull_back(batch, velocity, x, at_denoised)
    return _guidance(batch, step.index, velocity, rewards, gradient)


def one_step_guidance(batch: Batch, model: OneStepModel, x: Tensor, iteration: int) -> Guidance:
    """Gradient in x of r(M(x)) for a one-step model M. Raises as `flow_guidance`."""
    x, images = _with_graph(batch, lambda x: batch.meter.forward(model.generate, x, batch.prompts), x)
    rewards, at_images = _of_images(batch, lambda images: images, images)
    return _guidance(batch, iteration, images, rewards, _pull_back(batch, images, x, at_images))


def norms(x: Tensor) -> list[float]:
    """Euclidean norm of every sample of (B, ...), in float64.

    One sample at a time, as a sum over one row may be split among threads otherwise than over several rows.
    """
    return torch.stack([sample.double().norm() for sample in x]).tolist()


def cosines(guidance: Guidance, direction: Tensor) -> list[float | None]:
    """Cosine between every usable gradient and the direction (B, *shape) that was made of it."""
    pairs = zip(
        guidance.gradient, direction, guidance.norms, norms(direction), guidance.fallbacks, strict=True
    )
    return [
        None if reason is not None or b == 0 else float((x.double() * y.double()).sum()) / (a * b)
        for x, y, a, b, reason in pairs
    ]


def _with_graph(batch: Batch, forward: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """x as a leaf, and forward(x) with the graph between them."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        output = forward(x)
    if not output.requires_grad:
        raise ValueError(
            f"{batch.method}: the model's output has no gradient in its input; it must not use no_grad"
        )
    return x, output


def _of_images(batch: Batch, decode: Callable[[Tensor], Tensor], latents: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards (B,) of the decoded latents, and their gradient in the latents."""
    latents = latents.detach().requires_grad_()
    with torch.enable_grad(), batch.meter.time("reward"):
        rewards = batch.rewards(decode(latents), batch.prompts)
        if not rewards.requires_grad:
            raise ValueError(
                f"{batch.method}: the reward has no gradient in the latents; it must not use no_grad"
            )
        (gradient,) = torch.autograd.grad(rewards.sum(), latents)
    return rewards.detach(), gradient


def _pull_back(batch: Batch, output: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
    with batch.meter.time("model"):
        return torch.autograd.grad(output, x, cotangent)[0]


def _guidance(batch: Batch, step: int, output: Tensor, rewards: Tensor, gradient: Tensor) -> Guidance:
    values, sizes = rewards.tolist(), norms(gradient)
    return Guidance(output.detach(), values, gradient, sizes, _fallbacks(batch, step, values, sizes))


def _fallbacks(batch: Batch, step: int, rewards: Sequence[float], sizes: Sequence[float]) -> list[str | None]:
    fallbacks: list[str | None] = []
    for index, (reward, size) in enumerate(zip(rewards, sizes, strict=True)):
        if not math.isfinite(reward):
            fallbacks.append(batch.complain(step, index, "non-finite reward"))
        elif not math.isfinite(size):
            fallbacks.append(batch.complain(step, index, "non-finite gradient"))
        else:
            # zero points nowhere, and what an operator would make of it is the same at every step
            fallbacks.append("zero gradient" if size == 0 else None)
    return fallbacks
