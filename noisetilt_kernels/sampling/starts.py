"""Starts of the samplers of flows: plain noise, a Markov chain (`PCNL`) or an image (`FromImage`)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..checks import check_choice, check_integer, check_number, shown
from .batch import Batch, entries_of, joined
from .gradients import Guidance, column_of, dot_of_each, drift_of, flow_guidance
from .protocols import FlowModel, decoder_of_estimates
from .result import best_index
from .steps import Step, denoised

STARTS = ("noise", "pcnl")
"""Names of the starts."""


@dataclass
class Point:
    """Latents of K entries of each particle, and what a start knows there.

    Args:
        x: latents (B K, *shape).
        known: velocities, rewards and gradients there, if they are known already. The first step takes them
            in place of a second forward.
    """

    x: Tensor
    known: Guidance | None = None

    def take_known(self) -> Guidance | None:
        """Return what is known and forget it."""
        known, self.known = self.known, None
        return known

    def put(self, x: Tensor) -> None:
        """Replace the latents. Nothing is known there."""
        self.x, self.known = x, None


@runtime_checkable
class Start(Protocol):
    """Start of a sampler: it makes the latents of a micro-batch at the first step, x_1 in most cases.

    Attributes:
        iterations: number of forwards that it makes for each copy beyond that of the first step, at least 0.
            It makes as many records of each particle, numbered before that of the first step.
        alpha: temperature of the law of x_1, N(0, I) exp(r(x0_hat) / alpha); infinite for plain noise.
    """

    @property
    def iterations(self) -> int:
        """Number of forwards of a copy and records of a particle."""

    @property
    def alpha(self) -> float:
        """Temperature of the law of x_1."""

    def begin(self, batch: Batch, model: FlowModel, step: Step, copies: int = 1) -> Point:
        """Return the first latents, (B copies, *shape), with what is known there.

        Args:
            batch: micro-batch of B particles.
            model: flow.
            step: first step after the start.
            copies: number of copies of a particle.
        """

    def move(self, batch: Batch, model: FlowModel, step: Step, point: Point) -> None:
        """Make one of the iterations, and record it under the number step.index. The point is changed."""

    def left_out(self, steps: int) -> int:
        """Return how many of the first steps of a trajectory of `steps` steps are left out."""


class PlainNoise:
    """Start at standard normal noise."""

    iterations, alpha = 0, math.inf

    def begin(self, batch: Batch, model: FlowModel, step: Step, copies: int = 1) -> Point:
        """Return the first draws of every particle."""
        return Point(step.start * batch.draw(copies))

    def move(self, batch: Batch, model: FlowModel, step: Step, point: Point) -> None:
        """Do nothing: there are no iterations."""

    def left_out(self, steps: int) -> int:
        """Return 0: no step is left out."""
        return 0


@dataclass(frozen=True, eq=False)
class FromImage(PlainNoise):
    """Start at given images with noise (image to image). The first steps are left out.

    The first latents are (1 - t) x_0 + t eps at the time t of the first step that is made. As in the
    image-to-image pipelines of diffusers for FLUX and Stable Diffusion 3, the first int(steps (1 - strength))
    steps are left out, so that at least one is made.

    Args:
        latents: latents x_0 of the images, float32 (P, *shape) for P particles, or (1, *shape) for all.
        strength: share of the steps that are made, in (0, 1]. With 1 nothing is left of the images.

    Raises:
        ValueError, TypeError: an argument is out of its range. A sampler raises ValueError for latents of
            another shape than those of its model.
    """

    latents: Tensor = field(repr=False)
    strength: float

    def __post_init__(self) -> None:
        if not isinstance(self.latents, Tensor):
            raise TypeError(f"FromImage: latents must be a tensor, got {shown(self.latents)}")
        check_number("FromImage", "strength", self.strength, 0, 1)
        if self.strength == 0:
            raise ValueError("FromImage: strength must be above 0, got 0")

    def begin(self, batch: Batch, model: FlowModel, step: Step, copies: int = 1) -> Point:
        """Return the images of the particles with noise."""
        noise = batch.draw(copies)
        rows = batch.rows_of("FromImage: latents", self.latents).to(noise.device, noise.dtype)
        return Point((1 - step.t) * rows.repeat_interleave(copies, dim=0) + step.t * noise)

    def left_out(self, steps: int) -> int:
        """Return the number of steps that are left out."""
        return int(steps - steps * self.strength)


@dataclass(frozen=True)
class PCNL:
    """Start at the last state of a Markov chain (pCNL) whose law is N(0, I) exp(r(x0_hat) / alpha).

    The first stage of Psi-Sampler, with one chain for each particle. A state x has phi(x) = r(x0_hat) / alpha
    at t = 1, and a drift G(x): the gradient of phi, shortened to the norm `clip`. With s = (1 - c) / (1 + c),
    c = epsilon / 4, the proposal is

        x' = s x + sqrt(1 - s^2) (xi + sqrt(epsilon) / 2 G(x)),   xi ~ N(0, I),

    and it is accepted or not so that the law stays exact for every drift (Metropolis-Hastings). The velocity
    and the gradient at the last state serve the first step of the sampler. So a particle needs `iterations`
    forwards in addition to those of the sampler, and with iterations = 0 its latents are those without this
    start, bit for bit. The chain raises no reward if x0_hat at t = 1 hardly depends on x, as for an ideal
    flow.

    With `SamplerOptions(non_finite="plain_noise")` a proposal with a non-finite reward is rejected, and the
    drift of a state without a usable gradient is 0.

    Args:
        iterations: number of proposals of the chain, at least 0.
        alpha: temperature of the rewards, above 0; a good value depends on the reward. Psi-Sampler uses 0.1
            for the aesthetic score.
        epsilon: step size of the chain, above 0 and at most 4. Psi-Sampler uses 0.5.
        clip: largest norm of the drift, at least 0. Psi-Sampler's for the aesthetic score is 1.024.

    Raises:
        ValueError, TypeError: an argument is out of its range.
    """

    iterations: int = 25
    alpha: float = 0.1
    epsilon: float = 0.5
    clip: float = 1.024

    def __post_init__(self) -> None:
        check_integer("PCNL", "iterations", self.iterations, 0)
        check_number("PCNL", "alpha", self.alpha, 0)
        check_number("PCNL", "epsilon", self.epsilon, 0, 4)
        check_number("PCNL", "clip", self.clip, 0)
        for name in ("alpha", "epsilon"):
            if getattr(self, name) == 0:
                raise ValueError(f"PCNL: {name} must be above 0, got 0")

    def begin(self, batch: Batch, model: FlowModel, step: Step, copies: int = 1) -> Point:
        """Return the first states of one chain for every copy."""
        x = step.start * batch.draw(copies)
        first = replace(step, index=step.index - self.iterations)
        return Point(x, flow_guidance(batch, model, x, first))

    def move(self, batch: Batch, model: FlowModel, step: Step, point: Point) -> None:
        """Propose a next state of every chain, accept it or not, and record the iteration."""
        known = point.take_known() or flow_guidance(batch, model, point.x, step)
        c = self.epsilon / 4
        shrink = (1 - c) / (1 + c)
        spread = math.sqrt(1 - shrink**2)
        half = math.sqrt(self.epsilon) / 2
        x, here = point.x / step.start, self._state(step, known)
        chains = len(x) // len(batch)
        z = batch.draw(chains) + half * here.drift
        proposal = shrink * x + spread * z
        there = self._state(step, flow_guidance(batch, model, step.start * proposal, step))
        forth = here.log_density(z, half)
        back = there.log_density((x - shrink * proposal) / spread, half)
        log_u = torch.log(batch.uniform(chains)).to(x.device)
        accept = log_u < back - forth  # False for NaN: neither state has a finite reward
        accepted = accept.tolist()
        point.x = torch.where(column_of(accept, x), step.start * proposal, point.x)
        point.known = _chosen(accept, accepted, there.guidance, here.guidance)
        batch.show(decoder_of_estimates(model), partial(denoised, point.x, point.known.output, step.t))
        _record(batch, step.index, step.t, here.guidance, there.guidance, accepted)

    def left_out(self, steps: int) -> int:
        """Return 0: no step is left out."""
        return 0

    def _state(self, step: Step, guidance: Guidance) -> "_State":
        rewards = torch.tensor(guidance.rewards, dtype=torch.float64, device=guidance.gradient.device)
        rewards = rewards / self.alpha
        phi = torch.where(rewards.isfinite(), rewards, -math.inf)
        return _State(guidance, phi, drift_of(guidance, step.start / self.alpha, self.clip))


class _State(NamedTuple):
    guidance: Guidance
    phi: Tensor
    """Rewards over alpha, float64 (B,); -inf for one that is not finite."""
    drift: Tensor
    """G, (B, *shape)."""

    def log_density(self, z: Tensor, half: float) -> Tensor:
        """Return phi + log q(x -> x'), float64 (B,), up to what is the same in both directions.

        z: (x' - s x) / sqrt(1 - s^2), (B, *shape).
        """
        return (
            self.phi + half * dot_of_each(self.drift, z) - half**2 / 2 * dot_of_each(self.drift, self.drift)
        )


def _record(
    batch: Batch, iteration: int, t: float, state: Guidance, proposal: Guidance, accepted: list[bool]
) -> None:
    """Record an iteration of the chains of every particle, with the values of the best one."""
    reasons = [
        reason or (None if math.isfinite(reward) else "non-finite reward of the proposal")
        for reason, reward in zip(state.fallbacks, proposal.rewards, strict=True)
    ]
    particles = entries_of(len(batch), len(accepted) // len(batch))
    best = [chains[best_index([state.rewards[chain] for chain in chains])] for chains in particles]
    batch.record(
        iteration,
        t,
        [state.rewards[chain] for chain in best],
        [state.norms[chain] for chain in best],
        fallbacks=[joined([reasons[chain] for chain in chains]) for chains in particles],
        acceptance=[sum(accepted[chain] for chain in chains) / len(chains) for chains in particles],
    )


def _chosen(mask: Tensor, accepted: list[bool], new: Guidance, old: Guidance) -> Guidance:
    """Return the new guidance of each particle that has accepted it, and the old one of the others."""

    def of_each(a: list[Any], b: list[Any]) -> list[Any]:
        return [x if yes else y for yes, x, y in zip(accepted, a, b, strict=True)]

    wide = column_of(mask, new.gradient)
    return Guidance(
        torch.where(wide, new.output, old.output),
        of_each(new.rewards, old.rewards),
        torch.where(wide, new.gradient, old.gradient),
        of_each(new.norms, old.norms),
        of_each(new.fallbacks, old.fallbacks),
    )


def as_start(function: str, start: str | Start) -> Start:
    """Return the start of a name, or a given `Start` itself.

    Raises:
        ValueError, TypeError: the name is unknown, or the value is neither a name nor a Start.
    """
    if isinstance(start, str):
        check_choice(function, "start", start, STARTS)
        return PCNL() if start == "pcnl" else PlainNoise()
    if not isinstance(start, Start):
        raise TypeError(
            f"{function}: start must be a name or a Start such as PCNL, with iterations, alpha, begin, "
            f"move and left_out, got {shown(start)}"
        )
    check_integer(function, "start.iterations", start.iterations, 0)
    return start


def start_of(name: str, **chain: Any) -> str | Start:
    """Return the start of a name with the arguments of its chain, which plain noise does not have."""
    return PCNL(**chain) if name == "pcnl" else name


def forwards_of_start(arguments: Mapping[str, Any]) -> int:
    """Return the number of forwards of a sampler's start, from the values of all its parameters."""
    return int(arguments["start_iterations"]) if arguments["start"] == "pcnl" else 0
