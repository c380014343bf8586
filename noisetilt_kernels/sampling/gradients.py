"""Gradients of the reward, computed in two parts: through decoder and reward, then through the model.

The second part multiplies the gradient at x0_hat by the model's Jacobian (a vector-Jacobian product). The
graph of the reward is freed before the model's backward starts, and each part is timed separately.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .batch import Batch
from .protocols import FlowModel, decoder_of_estimates
from .steps import Step, denoised
from .velocity import velocity_of


class Guidance(NamedTuple):
    """Rewards of a micro-batch and their gradients at x (B, *shape)."""

    output: Tensor
    """Output of the model at x, without a graph: velocity, x_0, or images of a one-step model."""
    rewards: list[float]
    """Reward of each particle."""
    gradient: Tensor
    """Gradients of the rewards in x, (B, *shape)."""
    norms: list[float]
    """Euclidean norm of each gradient."""
    fallbacks: list[str | None]
    """Reason why a particle has no usable gradient, or None."""

    @property
    def usable(self) -> Tensor:
        """Mask (B, 1, ..., 1) of the gradients that are finite and not zero."""
        usable = torch.tensor([reason is None for reason in self.fallbacks], device=self.gradient.device)
        return column_of(usable, self.gradient)


def flow_guidance(batch: Batch, model: FlowModel, x: Tensor, step: Step) -> Guidance:
    """Return the gradient of r(x0_hat) in x_t, and the velocity that the step needs, from one forward.

    x has one or more entries of each particle, (B K, *shape), which are divided into micro-batches. With
    v = v(x_t) and h the gradient of r at x0_hat = x_t - t v, the gradient in x_t is h - t (dv/dx)^T h.

    Raises:
        NonFiniteError: a reward or gradient is not finite and `options.non_finite` is "raise".
        ValueError: the model or the reward interrupts the graph.
    """
    velocities, rewards, gradients = [], [], []
    for part, prompts in batch.parts(x):
        leaf, velocity = _with_graph(
            batch, partial(velocity_of, batch, model, t=step.t, prompts=prompts), part
        )
        estimates = denoised(leaf, velocity, step.t)
        values, at_denoised = _of_images(batch, decoder_of_estimates(model), estimates, prompts)
        rewards.append(values)
        gradients.append(at_denoised - step.t * _pull_back(batch, velocity, leaf, at_denoised))
        velocities.append(velocity.detach())
    return _guidance(batch, step.index, torch.cat(velocities), torch.cat(rewards), torch.cat(gradients))


def guidance_through(
    batch: Batch,
    forward: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    x: Tensor,
    iteration: int,
) -> Guidance:
    """Return the gradient in x of r(decode(forward(x))). Errors: see `flow_guidance`."""
    x, output = _with_graph(batch, forward, x)
    rewards, at_output = _of_images(batch, decode, output, batch.prompts)
    return _guidance(batch, iteration, output, rewards, _pull_back(batch, output, x, at_output))


def drift_of(guidance: Guidance, scale: float, longest: float = math.inf) -> Tensor:
    """Return scale times the gradients (B, *shape), of norm at most `longest`; 0 for an unusable one."""
    factors = [min(scale, longest / norm) if norm else 0.0 for norm in guidance.norms]
    column = torch.tensor(factors, dtype=guidance.gradient.dtype, device=guidance.gradient.device)
    column = column_of(column, guidance.gradient)
    return torch.where(guidance.usable, column * guidance.gradient, 0)


def norm_of_each(x: Tensor) -> Tensor:
    """Return the Euclidean norm of every sample of (B, ...), float64 (B,), on x's device.

    Samples are summed one at a time, because threads may split a sum over several rows differently.
    """
    return torch.stack([sample.double().norm() for sample in x])


def column_of(values: Tensor, x: Tensor) -> Tensor:
    """Return one value for each sample of x (B, ...), (B,), as (B, 1, ..., 1)."""
    return values.view(-1, *[1] * (x.dim() - 1))


def dot_of_each(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products of the samples of (B, ...), float64 (B,), on x's device."""
    return torch.stack([(a.double() * b.double()).sum() for a, b in zip(x, y, strict=True)])


def norms(x: Tensor) -> list[float]:
    """Return the Euclidean norm of every sample of (B, ...), in float64."""
    return norm_of_each(x).tolist()


def cosines(guidance: Guidance, direction: Tensor) -> list[float | None]:
    """Return the cosine between each gradient and the direction (B, *shape) made from it.

    A particle without a usable gradient has None.
    """
    # one transfer from the device for all particles
    products, lengths = torch.stack(
        [dot_of_each(guidance.gradient, direction), norm_of_each(direction)]
    ).tolist()
    pairs = zip(products, guidance.norms, lengths, guidance.fallbacks, strict=True)
    return [
        None if reason is not None or b == 0 else max(-1.0, min(1.0, product / (a * b)))
        for product, a, b, reason in pairs
    ]


def _with_graph(batch: Batch, forward: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x as a leaf, and forward(x) with the graph between them."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        output = forward(x)
    check_graph(batch, output)
    return x, output


def check_graph(batch: Batch, output: Tensor) -> None:
    """Raise ValueError if the output of the model has no graph."""
    if not output.requires_grad:
        raise ValueError(
            f"{batch.method}: the model's output has no gradient in its input; it must not use no_grad"
        )


def _of_images(
    batch: Batch, decode: Callable[[Tensor], Tensor], latents: Tensor, prompts: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Return the rewards (B,) of the decoded latents, and their gradient in the latents."""
    latents = latents.detach().requires_grad_()
    with torch.enable_grad(), batch.time("reward"):
        rewards = batch.rewards(decode(latents), prompts)
        if not rewards.requires_grad:
            raise ValueError(
                f"{batch.method}: the reward has no gradient in the latents; it must not use no_grad"
            )
        (gradient,) = torch.autograd.grad(rewards.sum(), latents)
    return rewards.detach(), gradient


def _pull_back(batch: Batch, output: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
    """Return the vector-Jacobian product of the cotangent with d output / d x."""
    with batch.time("model"):
        return torch.autograd.grad(output, x, cotangent)[0]


def _guidance(batch: Batch, step: int, output: Tensor, rewards: Tensor, gradient: Tensor) -> Guidance:
    values, sizes = rewards.tolist(), norms(gradient)
    return Guidance(output.detach(), values, gradient, sizes, fallbacks_of(batch, step, values, sizes))


def fallbacks_of(
    batch: Batch, step: int, rewards: Sequence[float], sizes: Sequence[float] | None = None
) -> list[str | None]:
    """Return the reason why each entry of the particles has no usable gradient, or None.

    Args:
        batch: micro-batch of B particles.
        step: number of the step, for errors.
        rewards: rewards (B K,) of K entries of each particle.
        sizes: norms of their gradients; None for rewards without gradients.

    Raises:
        NonFiniteError: a value is not finite and `options.non_finite` is "raise".
    """
    copies = len(rewards) // len(batch)
    fallbacks: list[str | None] = []
    for index, (reward, size) in enumerate(zip(rewards, sizes or [1.0] * len(rewards), strict=True)):
        if not math.isfinite(reward):
            fallbacks.append(batch.fall_back(step, index // copies, "non-finite reward"))
        elif not math.isfinite(size):
            fallbacks.append(batch.fall_back(step, index // copies, "non-finite gradient"))
        else:
            # Zero has no direction. An operator would turn it into the same noise at every step.
            fallbacks.append("zero gradient" if size == 0 else None)
    return fallbacks
