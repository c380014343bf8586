"""Steps of the reverse SDE, shared by all samplers (DESIGN section 7; NoiseTilt eq. 33 to 36).

Latents x, velocities and noise are float32 (B, *shape).
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from .protocols import FlowModel
from .schedules import Schedule
from .vp import VPShape, at_vp_time


@dataclass(frozen=True)
class Step:
    """Step from time t to t - delta, with diffusion coefficient g and noise of standard deviation sigma.

    In VP time g is the diffusion coefficient there.

    The last step ends at time 0 and has g = sigma = 0 for every schedule, so x_0 is the denoised estimate
    x0_hat. Noise added there would stay in the result: its variance is of first order in the length of the
    step, but the variance that x0_hat lacks, Var[x_0 | x_t], is of second order. Without noise there is
    nothing to tilt or to select, so every method leaves the last step unguided.
    """

    index: int
    t: float
    delta: float
    g: float
    sigma: float
    factors: tuple[float, float, float] | None = None
    """Factors of x, -v and the score in `mean`, for a step in VP time; None in the time of the flow."""
    start: float = 1.0
    """Factor that makes standard normal noise the latents at t, for a first step in VP time."""
    guided: bool = True
    """False for a step that a guided sampler makes without guidance, see `GuidedSteps`."""


def plan_steps(function: str, model: FlowModel, steps: int, schedule: Schedule) -> list[Step]:
    """Return the steps between the times `model.sigmas(steps)`, or between those of a schedule in VP time.

    Raises:
        ValueError: the times are not steps + 1 strictly decreasing numbers from 1 to 0.
    """
    if schedule.vp is not None:
        assert schedule.scale is not None
        return _plan_vp(steps, schedule.vp, schedule.scale)
    sigmas = torch.as_tensor(model.sigmas(steps)).double().cpu()
    if (
        sigmas.shape != (steps + 1,)
        or sigmas[0] != 1
        or sigmas[-1] != 0
        or not bool((sigmas.diff() < 0).all())
    ):
        raise ValueError(
            f"{function}: model.sigmas({steps}) must be {steps + 1} strictly decreasing times from 1 to 0, "
            f"got {sigmas.tolist()}"
        )
    times: list[float] = sigmas.tolist()
    planned = []
    for index, (t, after) in enumerate(pairwise(times)):
        last = index == steps - 1
        delta = t - after
        g, sigma = (0.0, 0.0) if last else (schedule.g(t), schedule.sigma(t, delta))
        planned.append(Step(index, t, delta, g, sigma))
    return planned


def _plan_vp(steps: int, shape: VPShape, scale: float) -> list[Step]:
    """Return the steps of the reverse SDE in VP time, in the variables of the flow; see `vp`."""
    rhos = [shape.rho(index / steps) for index in range(steps)]
    points = [at_vp_time(rho) for rho in rhos]
    planned = []
    for index in range(steps - 1):
        (t, c, t_slope, c_slope), (after, c_after, *_) = points[index], points[index + 1]
        d, gamma = rhos[index] - rhos[index + 1], scale * shape.gamma(rhos[index])
        factors = (c - d * c_slope) / c_after, d * c * t_slope / c_after, gamma**2 * d / (2 * c * c_after)
        planned.append(Step(index, t, t - after, gamma, gamma * math.sqrt(d) / c_after, factors))
    planned.append(Step(steps - 1, points[-1].t, points[-1].t, 0.0, 0.0))  # to x0_hat, without noise
    planned[0] = replace(planned[0], start=1 / points[0].c)
    return planned


def denoised(x: Tensor, velocity: Tensor, t: float) -> Tensor:
    """Return x0_hat = E[x_0 | x_t = x] = x - t v."""
    return x - t * velocity


def score(x: Tensor, velocity: Tensor, t: float) -> Tensor:
    """Return the score -(x + (1-t) v) / t, the gradient of the log-density of x_t, for t > 0."""
    return -(x + (1 - t) * velocity) / t


def mean(x: Tensor, velocity: Tensor, step: Step) -> Tensor:
    """Return mu = x - delta v + g^2/2 delta s, or a x - b v + d s in VP time: the step without noise."""
    if step.factors is not None:
        a, b, d = step.factors
        return a * x - b * velocity + d * score(x, velocity, step.t)
    ode = x - step.delta * velocity
    if step.g == 0:
        return ode
    return ode + (0.5 * step.g**2 * step.delta) * score(x, velocity, step.t)


def advance(x: Tensor, velocity: Tensor, step: Step, noise: Tensor) -> Tensor:
    """Return x_{t-delta} = mu + sigma noise, for standard normal or tilted noise of x's shape."""
    return mean(x, velocity, step) + step.sigma * noise


def renoise(x: Tensor, s: float, t: float, noise: Tensor) -> Tensor:
    """Return x_t = a x_s + b noise: the forward process of the flow from time s to a later time t.

    a = (1-t) / (1-s) and b^2 = t^2 - a^2 s^2 carry the distribution of x_s exactly to that of x_t. At t = 1
    nothing of x_s is left.
    """
    a = (1 - t) / (1 - s)
    return a * x + math.sqrt(max(0.0, t**2 - (a * s) ** 2)) * noise
