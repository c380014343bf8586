"""Flows to Gaussian data with a velocity in closed form, and models and rewards for tests.

Derivation. With x_t = (1-t) x_0 + t eps, x_0 ~ N(m, S) and eps ~ N(0, I) independent, x_t ~ N((1-t) m, C_t)
with C_t = (1-t)^2 S + t^2 I, and Cov(x_0, x_t) = (1-t) S, Cov(eps, x_t) = t I. For jointly Gaussian vectors
conditional means are linear,

    E[x_0 | x_t] = m + (1-t) S C_t^-1 (x_t - (1-t) m)
    E[eps | x_t] =         t   C_t^-1 (x_t - (1-t) m)

and the velocity is their difference:

    v(x, t) = E[eps - x_0 | x_t = x] = -m + (t I - (1-t) S) C_t^-1 (x - (1-t) m).

Everything is elementwise, and sums of d terms are written out. An entry has the same bits in every batch.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from noisetilt_kernels.sampling.steps import Step


def uniform(n: int) -> Tensor:
    """Return the times of n equal steps."""
    return torch.linspace(1, 0, n + 1, dtype=torch.float64)


def shifted(n: int, shift: float = 3.0) -> Tensor:
    """Return the times of n steps that are shorter near noise, like those of FLUX."""
    t = uniform(n)
    return shift * t / (1 + (shift - 1) * t)


class Marginal(NamedTuple):
    """A Gaussian N(mean, covariance), float64: (d,), (d, d)."""

    mean: Tensor
    covariance: Tensor


class GaussianFlow:
    """Flow to data N(mean, covariance), with latents (d,). Images show sigmoid(x_0) as grey values."""

    device = torch.device("cpu")

    def __init__(
        self,
        mean: Sequence[float],
        covariance: Sequence[Sequence[float]],
        sigmas: Callable[[int], Tensor] = uniform,
    ) -> None:
        self.data = Marginal(torch.tensor(mean).double(), torch.tensor(covariance).double())
        self.shape = (len(mean),)
        self.sigmas = sigmas

    def marginal(self, t: float) -> Marginal:
        """Return the distribution of x_t."""
        return Marginal((1 - t) * self.data.mean, (1 - t) ** 2 * self.data.covariance + t**2 * self._identity)

    def linear_velocity(self, t: float) -> tuple[Tensor, Tensor]:
        """Return A and b, float64, of v(x, t) = A x + b."""
        mean, covariance = self.data
        matrix = (t * self._identity - (1 - t) * covariance) @ torch.linalg.inv(self.marginal(t).covariance)
        return matrix, -mean - (1 - t) * matrix @ mean

    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        matrix, offset = (tensor.to(x.dtype) for tensor in self.linear_velocity(sigma))
        return sum((x[:, k, None] * matrix[:, k] for k in range(len(offset))), start=offset)

    def decode(self, x0: Tensor) -> Tensor:
        return torch.sigmoid(x0)[:, None, None, :].expand(-1, 3, 1, -1)

    @property
    def _identity(self) -> Tensor:
        return torch.eye(len(self.data.mean), dtype=torch.float64)


def after_steps(flow: GaussianFlow, steps: Sequence[Step], start: Marginal | None = None) -> Marginal:
    """Return the exact mean and covariance after Euler-Maruyama steps of the reverse SDE, float64.

    A step is the map x -> x - delta v - g^2/2 delta (x + (1-t) v) / t + g sqrt(delta) eps; in VP time it has
    other factors. It is affine, because v is. This is a second implementation of the step, so that tests can
    compare it with the one of the samplers.

    Args:
        flow: the flow.
        steps: the steps.
        start: distribution before the first step; None means that of the noise.
    """
    identity = torch.eye(len(flow.data.mean), dtype=torch.float64)
    mean, covariance = start or Marginal(torch.zeros_like(flow.data.mean), steps[0].start ** 2 * identity)
    for step in steps:
        matrix, offset = flow.linear_velocity(step.t)
        of_x, of_v, of_score = step.factors or (1.0, step.delta, 0.5 * step.g**2 * step.delta)
        drift = of_score / step.t
        factor = of_v + drift * (1 - step.t)
        transfer = (of_x - drift) * identity - factor * matrix
        mean = transfer @ mean - factor * offset
        noise = step.g**2 * step.delta if step.factors is None else step.sigma**2
        covariance = transfer @ covariance @ transfer.T + noise * identity
    return Marginal(mean, covariance)


class LatentFlow:
    """Flow to data N(mean, variance I), with image latents (C, H, W), C >= 3. Images show sigmoid(x_0).

    `bend` scales a term of the velocity that is not linear in x.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        shape: tuple[int, ...] = (4, 16, 16),
        mean: float = 0.5,
        variance: float = 0.25,
        bend: float = 0.0,
        sigmas: Callable[[int], Tensor] = uniform,
    ) -> None:
        self.shape, self.sigmas = shape, sigmas
        self.bend, self._mean, self._variance = bend, mean, variance

    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        t, s = sigma, self._variance
        slope = (t - (1 - t) * s) / ((1 - t) ** 2 * s + t**2)
        return slope * (x - (1 - t) * self._mean) - self._mean + self.bend * torch.sin(2 * x)

    def decode(self, x0: Tensor) -> Tensor:
        return torch.sigmoid(x0[:, :3])


class LatentGenerator:
    """One-step model of noise (C, H, W). Images show sigmoid(noise / 2) of its first three channels."""

    device = torch.device("cpu")

    def __init__(self, shape: tuple[int, ...] = (4, 16, 16)) -> None:
        self.shape = shape

    def generate(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.sigmoid(x[:, :3] / 2)


def mean_of_each(values: Tensor) -> Tensor:
    """Return the means (B,) of (B, ...), one sample at a time, with the same bits in every batch."""
    return torch.stack([sample.mean() for sample in values])


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Reward of a high mean grey value, or of a low one for the prompt "dark"."""
    sign = torch.tensor([-1.0 if prompt == "dark" else 1.0 for prompt in prompts], dtype=images.dtype)
    return sign * mean_of_each(images)


def left_half(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Reward of a bright left half and a dark right half: strongly structured, quadratic in the images."""
    height, width = images.shape[-2:]
    target = (torch.arange(width) < width // 2).to(images.dtype).expand(height, width)
    return -mean_of_each((images - target) ** 2)


class Spy:
    """Wrapper of a model that remembers the inputs of every call; those of a backward are only counted."""

    def __init__(self, model: GaussianFlow | LatentFlow) -> None:
        self.model = model
        self.shape, self.device, self.sigmas, self.decode = (
            model.shape,
            model.device,
            model.sigmas,
            model.decode,
        )
        self.calls: list[tuple[Tensor, float, list[str], bool]] = []
        """x, t and prompts of every forward, and True if gradients were enabled."""
        self.repeated = 0
        """Number of batch entries of the forwards that a backward made a second time."""

    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        if torch._C._current_graph_task_id() == -1:
            self.calls.append((x.detach().clone(), sigma, list(prompts), torch.is_grad_enabled()))
        else:
            self.repeated += len(x)
        return self.model.velocity(x, sigma, prompts)

    @property
    def entries(self) -> int:
        """Number of batch entries of all calls."""
        return sum(len(x) for x, *_ in self.calls)
