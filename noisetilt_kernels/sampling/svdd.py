"""SVDD, search among candidates at every step (DESIGN section 7; NoiseTilt eq. 8 and 9)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..checks import check_integer
from .batch import Batch
from .flow import (
    DEFAULT_SCHEDULE,
    DEFAULT_START,
    DEFAULT_STEPS,
    FlowAlgorithm,
    FlowState,
    rewards_of,
)
from .options import SamplerOptions
from .protocols import FlowModel, Reward, decoder_of_estimates
from .registry import register_sampler
from .result import Result, best_index
from .schedules import Schedule
from .starts import Start, forwards_of_start
from .steps import Step, denoised, mean
from .stepwise import stepwise
from .velocity import velocities_of


@dataclass
class SVDDState(FlowState):
    """State of `svdd`.

    Args:
        velocity: velocity at the latents, once it is known.
    """

    velocity: Tensor | None = None

    def put(self, x: Tensor) -> None:
        """Replace the latents. Nothing is known there."""
        super().put(x)
        self.velocity = None


@dataclass(kw_only=True)
class SVDD(FlowAlgorithm[SVDDState]):
    """Steps of `svdd`."""

    name, state_type = "svdd", SVDDState
    fixed = (*FlowAlgorithm.fixed, "candidates")

    candidates: int

    def __post_init__(self) -> None:
        check_integer("svdd", "candidates", self.candidates, 1)
        super().__post_init__()

    def guided_step(self, batch: Batch, state: SVDDState, step: Step) -> None:
        """Draw candidates and keep the best one of each particle."""
        model, candidates = self.model, self.candidates
        velocity = self.velocity(batch, state, step)
        center = mean(state.x, velocity, step).repeat_interleave(candidates, dim=0)
        drawn = center + step.sigma * batch.draw(candidates)
        t = step.t - step.delta
        velocities = velocities_of(batch, model, drawn, t)
        rewards = rewards_of(batch, decoder_of_estimates(model), denoised(drawn, velocities, t))
        chosen, fallbacks = choose(batch, step.index, rewards, candidates)
        state.x, state.velocity = drawn[chosen], velocities[chosen]
        self.show(batch, state.x, state.velocity, t)
        batch.record(step.index, step.t, [rewards[index] for index in chosen], fallbacks=fallbacks)

    def velocity(self, batch: Batch, state: SVDDState, step: Step) -> Tensor:
        """Return the velocity at the latents, from the last step if there was one."""
        return super().velocity(batch, state, step) if state.velocity is None else state.velocity


@register_sampler(
    kind="flow",
    needs_gradient=False,
    algorithm=SVDD,
    nfe=lambda arguments: (
        1 + arguments["candidates"] * (arguments["steps"] - 1) + forwards_of_start(arguments)
    ),
    entries=lambda arguments: arguments["candidates"],
)
def svdd(
    model: FlowModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    candidates: int = 4,
    steps: int = DEFAULT_STEPS,
    schedule: str | Schedule = DEFAULT_SCHEDULE,
    start: str | Start = DEFAULT_START,
    options: SamplerOptions | None = None,
) -> Result:
    """Draw K candidates at each step and keep the one with the highest r(x0_hat) (NoiseTilt eq. 8 and 9).

    x0_hat is computed from the candidate, at the time where the step ends. With K = 1 the latents are those
    of `base`, bit for bit. NFE per particle: 1 + K (steps - 1), because the velocity of the chosen candidate
    is reused in the next step.

    With `SamplerOptions(non_finite="plain_noise")` a candidate with a non-finite reward is not chosen. If no
    candidate is left, the first one is taken.

    Args:
        model: flow to sample from.
        reward: function that judges the images.
        prompts: one prompt for each particle; a string is one particle.
        candidates: number K of candidates at each step, at least 1. A micro-batch holds as many particles as
            fit with all their candidates, at least one; candidates are divided into micro-batches too.
        steps: number of steps, at least 1.
        schedule: diffusion coefficient g(t). Pass a name of `Schedule` or a `Schedule`; scale 0 is the ODE.
        start: start point x_1, "noise" or "pcnl", or a `Start`: `PCNL` or `FromImage`. The forwards of a
            chain are counted in addition.
        options: seed, micro-batches, callbacks; None means `SamplerOptions()`.

    Raises:
        ValueError, TypeError: an argument is out of its range (raised before any work), or the model or the
            reward returns a wrong shape.
        NonFiniteError: a reward or latent is not finite.
    """
    return stepwise(
        svdd,
        model,
        reward,
        prompts,
        options=options,
        candidates=candidates,
        steps=steps,
        schedule=schedule,
        start=start,
    ).result()


def choose(
    batch: Batch, step: int, rewards: Sequence[float], candidates: int
) -> tuple[list[int], list[str | None]]:
    """Return the index of the best candidate of each particle, and the reason if a reward is not finite.

    Raises:
        NonFiniteError: a reward is not finite and `options.non_finite` is "raise".
    """
    chosen: list[int] = []
    fallbacks: list[str | None] = []
    for index in range(len(batch)):
        first = index * candidates
        finite = [
            reward if math.isfinite(reward) else math.nan for reward in rewards[first : first + candidates]
        ]
        bad = sum(map(math.isnan, finite))
        reason = f"non-finite reward of {bad} of {candidates} candidates"
        fallbacks.append(batch.fall_back(step, index, reason) if bad else None)
        chosen.append(first + best_index(finite))
    return chosen, fallbacks
