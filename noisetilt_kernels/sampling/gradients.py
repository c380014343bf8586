"""Gradients of the reward, computed in two parts: through decoder and reward, then through the model.

The second part multiplies the gradient at x0_hat by the model's Jacobian (a vector-Jacobian product). The
graph of the reward is freed before the model's backward starts, and each part is timed separately.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .loop import Batch
from .protocols import FlowModel, OneStepModel
from .steps import Step, denoised
from .velocity import velocity_of


class Guidance(NamedTuple):
    """Rewards of a micro-batch and their gradients at x (B, *shape)."""

    output: Tensor
    """Output of the model at x, without a graph: velocity, images of a one-step model, or x_0 with `dno`."""
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
        return usable.view(-1, *[1] * (self.gradient.dim() - 1))


def flow_guidance(batch: Batch, model: FlowModel, x: Tensor, step: Step) -> Guidance:
    """Return the gradient of r(x0_hat) in x_t, and the velocity that the step needs, from one forward.

    The start of a sampler may know them at the tensor x already (`Batch.known`). With
    v = v(x_t) and h the gradient of r at x0_hat = x_t - t v, the gradient in x_t is h - t (dv/dx)^T h.

    Raises:
        NonFiniteError: a reward or gradient is not finite and `options.non_finite` is "raise".
        ValueError: the model or the reward interrupts the graph.
    """
    known = batch.take_known(x)
    if known is not None:
        return known
    x, velocity = _with_graph(batch, lambda x: velocity_of(batch, model, x, step.t, batch.prompts), x)
    rewards, at_denoised = _of_images(batch, model.decode, denoised(x, velocity, step.t))
    gradient = at_denoised - step.t * _pull_back(batch, velocity, x, at_denoised)
    return _guidance(batch, step.index, velocity, rewards, gradient)


def one_step_guidance(batch: Batch, model: OneStepModel, x: Tensor, iteration: int) -> Guidance:
    """Return the gradient in x of r(M(x)) for a one-step model M. Errors: see `flow_guidance`."""
    return guidance_through(
        batch,
        lambda x: batch.meter.forward(model.generate, x, batch.prompts),
        lambda images: images,
        x,
        iteration,
    )


def guidance_through(
    batch: Batch,
    forward: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    x: Tensor,
    iteration: int,
) -> Guidance:
    """Return the gradient in x of r(decode(forward(x))). Errors: see `flow_guidance`."""
    x, output = _with_graph(batch, forward, x)
    rewards, at_output = _of_images(batch, decode, output)
    return _guidance(batch, iteration, output, rewards, _pull_back(batch, output, x, at_output))


def norm_of_each(x: Tensor) -> Tensor:
    """Return the Euclidean norm of every sample of (B, ...), float64 (B,), on x's device.

    Samples are summed one at a time, because threads may split a sum over several rows differently.
    """
    return torch.stack([sample.double().norm() for sample in x])


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


def _of_images(batch: Batch, decode: Callable[[Tensor], Tensor], latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rewards (B,) of the decoded latents, and their gradient in the latents."""
    latents = latents.detach().requires_grad_()
    with torch.enable_grad(), batch.time("reward"):
        rewards = batch.rewards(decode(latents), batch.prompts)
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
    return Guidance(output.detach(), values, gradient, sizes, _fallbacks(batch, step, values, sizes))


def _fallbacks(batch: Batch, step: int, rewards: Sequence[float], sizes: Sequence[float]) -> list[str | None]:
    """Return the reason why each particle has no usable gradient, or None."""
    fallbacks: list[str | None] = []
    for index, (reward, size) in enumerate(zip(rewards, sizes, strict=True)):
        if not math.isfinite(reward):
            fallbacks.append(batch.fall_back(step, index, "non-finite reward"))
        elif not math.isfinite(size):
            fallbacks.append(batch.fall_back(step, index, "non-finite gradient"))
        else:
            # Zero has no direction. An operator would turn it into the same noise at every step.
            fallbacks.append("zero gradient" if size == 0 else None)
    return fallbacks
