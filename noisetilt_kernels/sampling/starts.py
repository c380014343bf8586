"""Start points x_1 of the samplers of flows: plain noise, or the last state of a Markov chain."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..checks import check_choice, check_integer, check_number, shown
from .gradients import Guidance, column_of, dot_of_each, drift_of, flow_guidance
from .loop import Batch, joined
from .protocols import FlowModel
from .result import best_index
from .steps import Step

STARTS = ("noise", "pcnl")
"""Names of the starts."""


@runtime_checkable
class Start(Protocol):
    """Start of a sampler: a function that makes the latents x_1 of a micro-batch.

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

    def __call__(self, batch: Batch, model: FlowModel, step: Step, copies: int = 1) -> Tensor:
        """Return x_1, (B copies, *shape). `batch.known` may hold velocity and gradient of the first step."""


class PlainNoise:
    """Start at standard normal noise."""

    iterations, alpha = 0, math.inf

    def __call__(self, batch: Batch, model: FlowModel, step: Step, copies: int = 1) -> Tensor:
        """Return the first draws of every particle."""
        return step.start * batch.draw(copies)


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
    start, bit for bit. The chain learns nothing if x0_hat at t = 1 hardly depends on x, as for an ideal flow.

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

    def __call__(self, batch: Batch, model: FlowModel, step: Step, copies: int = 1) -> Tensor:
        """Run one chain for every copy and return their last states."""
        for x, guidance in self.states(batch, model, step, copies):  # noqa: B007  (only the last ones)
            pass
        batch.known = x, guidance
        return x

    def states(
        self, batch: Batch, model: FlowModel, step: Step, chains: int
    ) -> Iterator[tuple[Tensor, Guidance]]:
        """Yield the first latents (B chains, *shape) and those after each iteration, with their guidance.

        The states x of the chains are noise; the latents are step.start x.
        """
        c = self.epsilon / 4
        shrink = (1 - c) / (1 + c)
        spread = math.sqrt(1 - shrink**2)
        half = math.sqrt(self.epsilon) / 2
        x = batch.draw(chains)
        first = step.index - self.iterations
        here = self._at(batch, model, x, replace(step, index=first))
        yield step.start * x, here.guidance
        for iteration in range(first, step.index):
            z = batch.draw(chains) + half * here.drift
            proposal = shrink * x + spread * z
            there = self._at(batch, model, proposal, replace(step, index=iteration))
            forth = here.log_density(z, half)
            back = there.log_density((x - shrink * proposal) / spread, half)
            log_u = torch.log(batch.uniform(chains)).to(x.device)
            accept = log_u < back - forth  # False for NaN: neither state has a finite reward
            accepted = accept.tolist()
            _record(batch, iteration, step.t, here.guidance, there.guidance, accepted)
            x = torch.where(column_of(accept, x), proposal, x)
            here = _chosen(accept, accepted, there, here)
            yield step.start * x, here.guidance

    def _at(self, batch: Batch, model: FlowModel, x: Tensor, step: Step) -> "_State":
        guidance = flow_guidance(batch, model, step.start * x, step)
        rewards = torch.tensor(guidance.rewards, dtype=torch.float64, device=x.device) / self.alpha
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
    particles = batch.entries(len(accepted))
    best = [chains[best_index([state.rewards[chain] for chain in chains])] for chains in particles]
    batch.record(
        iteration,
        t,
        [state.rewards[chain] for chain in best],
        [state.norms[chain] for chain in best],
        fallbacks=[joined([reasons[chain] for chain in chains]) for chains in particles],
        acceptance=[sum(accepted[chain] for chain in chains) / len(chains) for chains in particles],
    )


def _chosen(mask: Tensor, accepted: list[bool], new: _State, old: _State) -> _State:
    """Return the new state of each particle that has accepted it, and the old one of the others."""

    def of_each(a: list[Any], b: list[Any]) -> list[Any]:
        return [x if yes else y for yes, x, y in zip(accepted, a, b, strict=True)]

    wide = column_of(mask, new.drift)
    a, b = new.guidance, old.guidance
    guidance = Guidance(
        torch.where(wide, a.output, b.output),
        of_each(a.rewards, b.rewards),
        torch.where(wide, a.gradient, b.gradient),
        of_each(a.norms, b.norms),
        of_each(a.fallbacks, b.fallbacks),
    )
    return _State(guidance, torch.where(mask, new.phi, old.phi), torch.where(wide, new.drift, old.drift))


def as_start(function: str, start: str | Start) -> Start:
    """Return the start of a name, or a given `Start` itself.

    Raises:
        ValueError, TypeError: the name is unknown, or the value is neither a name nor a Start.
    """
    if isinstance(start, str):
        check_choice(function, "start", start, STARTS)
        return PCNL() if start == "pcnl" else PlainNoise()
    if not isinstance(start, Start) or not callable(start):
        raise TypeError(f"{function}: start must be a name or a Start such as PCNL, got {shown(start)}")
    check_integer(function, "start.iterations", start.iterations, 0)
    return start


def start_of(name: str, **chain: Any) -> str | Start:
    """Return the start of a name with the arguments of its chain, which plain noise does not have."""
    return PCNL(**chain) if name == "pcnl" else name


def forwards_of_start(arguments: Mapping[str, Any]) -> int:
    """Return the number of forwards of a sampler's start, from the values of all its parameters."""
    return int(arguments["start_iterations"]) if arguments["start"] == "pcnl" else 0
