"""FK steering: copies without guidance, weighted by a potential of their rewards (Feynman-Kac steering)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from ..checks import check_choice, check_integer
from .batch import Batch
from .flow import DEFAULT_SCHEDULE, DEFAULT_STEPS, rewards_of
from .gradients import fallbacks_of
from .options import SamplerOptions
from .plain import OnCPU
from .population import (
    DEFAULT_COPIES,
    DEFAULT_RESAMPLING,
    DEFAULT_THRESHOLD,
    Population,
    PopulationAlgorithm,
    PopulationState,
)
from .protocols import FlowModel, Reward, decoder_of_estimates
from .registry import register_sampler
from .resampling import Resampling
from .result import Result
from .schedules import Schedule
from .steps import Step, advance, denoised
from .stepwise import stepwise

Potential = Literal["max", "sum", "difference"]
"""Potential of the rewards of a copy, see `fk`."""


@dataclass
class FKState(PopulationState):
    """State of `fk`.

    Args:
        scores: rewards of each copy as the potential combines them, float64 (B K,).
        twists: log of the last twist of each copy, float64 (B K,).
    """

    scores: OnCPU = field(default_factory=lambda: torch.zeros(0))
    twists: OnCPU = field(default_factory=lambda: torch.zeros(0))


@dataclass(kw_only=True)
class FK(PopulationAlgorithm[FKState]):
    """Steps of `fk`."""

    name, state_type = "fk", FKState
    fixed = (*PopulationAlgorithm.fixed, "potential")

    potential: Potential
    every: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("fk", "potential", self.potential, get_args(Potential))
        check_integer("fk", "every", self.every, 1)

    def begin(self, batch: Batch) -> FKState:
        """Return the first latents of all copies, with equal weights."""
        point = self.first(batch, self.copies)
        twists = torch.zeros(len(point.x), dtype=torch.float64)
        scores = torch.full_like(twists, -math.inf if self.potential == "max" else 0)
        population = Population.equal(batch, self.copies)
        return FKState(point.x, point.known, population=population, scores=scores, twists=twists)

    def guided_step(self, batch: Batch, state: FKState, step: Step) -> None:
        """Weigh and resample the copies at every `every`-th step, and move them as in `base`."""
        x, velocity = state.x, self.velocity(batch, state, step)
        self.show(batch, x, velocity, step.t)
        if weighed := (step.index + 1) % self.every == 0:
            rewards = rewards_of(batch, decoder_of_estimates(self.model), denoised(x, velocity, step.t))
            finite, scores, twists = apply_potential(
                self.potential, rewards, self.alpha, state.scores, state.twists
            )
            reasons = fallbacks_of(batch, step.index, rewards)
            state.population.weigh(torch.where(finite, twists, math.nan).tolist(), rewards, reasons)
            x, velocity, state.scores, state.twists = state.population.resample(
                batch, self.threshold, self.resampling, x, velocity, scores, twists
            )
        state.x = advance(x, velocity, step, batch.draw(self.copies))
        if weighed:
            state.population.record(batch, step, rewards)
        else:
            batch.record(step.index, step.t)

    def last_log_twists(self, rewards: Sequence[float]) -> list[float]:
        """Return r / alpha: the weighted copies follow the tilted law."""
        return [reward / self.alpha for reward in rewards]


@register_sampler(
    kind="flow",
    needs_gradient=False,
    algorithm=FK,
    nfe=lambda arguments: arguments["copies"] * arguments["steps"],
    entries=lambda arguments: arguments["copies"],
)
def fk(
    model: FlowModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    alpha: float,
    copies: int = DEFAULT_COPIES,
    potential: Potential = "max",
    every: int = 5,
    threshold: float = DEFAULT_THRESHOLD,
    resampling: Resampling = DEFAULT_RESAMPLING,
    steps: int = DEFAULT_STEPS,
    schedule: str | Schedule = DEFAULT_SCHEDULE,
    options: SamplerOptions | None = None,
) -> Result:
    """Weigh and resample K copies of a particle by their rewards; the heaviest one is the answer.

    The copies move as in `base`. After every few steps a weight is multiplied by the potential of the rewards
    of its copy, and the last potential corrects all earlier ones. So the weighted copies follow the law of
    `base` times exp(r(x_0) / alpha) as K grows, for every potential; see `population`.

    NFE per particle: K * steps. With `SamplerOptions(non_finite="plain_noise")` a copy with a non-finite
    reward gets weight 0.

    Args:
        model: flow to sample from.
        reward: function that judges the images.
        prompts: one prompt for each particle; a string is one particle.
        alpha: temperature of the rewards, above 0; a smaller one steers more strongly. The authors use 0.1
            for ImageReward.
        copies: number K of copies of a particle, at least 1. A micro-batch holds as many particles as fit
            with all their copies, at least one; copies are divided into micro-batches too.
        potential: potential of the rewards so far, "max", "sum" or "difference". A weight is multiplied by
            exp(max r / alpha), by exp(sum of r / alpha), or by exp((r - last r) / alpha).
        every: number of steps from one weighing to the next, at least 1. The authors weigh after each 20 of
            100 steps. The reward is called only there.
        threshold: effective sample size of the copies, as a share of K in [0, 1], below which they are
            resampled; 0 is never.
        resampling: unbiased resampling, "systematic" or "ssp".
        steps: number of steps, at least 1.
        schedule: diffusion coefficient g(t). Pass a name of `Schedule` or a `Schedule`; scale 0 is the ODE.
        options: seed, micro-batches, callbacks; None means `SamplerOptions()`.

    Returns:
        Result with `weights`, `ess` and `log_z` of the copies.

    Raises:
        ValueError, TypeError: an argument is out of its range (raised before any work), or the model or the
            reward returns a wrong shape.
        NonFiniteError: a reward or latent is not finite.
    """
    return stepwise(
        fk,
        model,
        reward,
        prompts,
        options=options,
        alpha=alpha,
        copies=copies,
        potential=potential,
        every=every,
        threshold=threshold,
        resampling=resampling,
        steps=steps,
        schedule=schedule,
    ).result()


def apply_potential(
    potential: Potential, rewards: Sequence[float], alpha: float, scores: Tensor, twists: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which rewards (B K,) are finite, and the scores and log-twists with these rewards.

    A score is the maximum or the sum of the rewards so far. A log-twist is the sum of the logarithms of all
    potentials. A reward that is not finite changes neither.
    """
    values = torch.tensor(rewards, dtype=torch.float64)
    finite = values.isfinite()
    new = {"max": scores.maximum(values), "sum": scores + values, "difference": values}[potential]
    scores = torch.where(finite, new, scores)
    before = 0 if potential == "difference" else twists
    return finite, scores, torch.where(finite, before + scores / alpha, twists)
