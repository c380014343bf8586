"""Psi-Sampler: start points from Markov chains, then guided copies at a fixed temperature (two stages)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..checks import check_integer, check_number
from .batch import Batch
from .das import GuidedCopies
from .flow import ALL_STEPS, DEFAULT_SCHEDULE, DEFAULT_STEPS
from .gradients import Guidance
from .guided import GuidedSteps, check_guided_start
from .options import SamplerOptions
from .population import (
    DEFAULT_RESAMPLING,
    DEFAULT_THRESHOLD,
    Population,
    PopulationState,
    check_temperature,
)
from .protocols import FlowModel, Reward
from .registry import register_sampler
from .resampling import Resampling
from .result import Result
from .schedules import Schedule
from .starts import PCNL, Point
from .stepwise import stepwise
from .typicality import TotalNoise

_Value = TypeVar("_Value")


@dataclass
class PsiState(PopulationState):
    """State of `psi`.

    Args:
        kept: states of the chains so far at which copies start, each with the latents (B chains, *shape).
    """

    kept: list[Point] = field(default_factory=list)


@dataclass(kw_only=True)
class Psi(GuidedCopies[PsiState]):
    """Steps of `psi`: those of its chains, then those of `das` from their states."""

    name, state_type, answer = "psi", PsiState, "reward"
    fixed = (*GuidedCopies.fixed, "chains", "burn_in", "kept")

    clip: float
    chains: int
    burn_in: int
    kept: int
    chain_alpha: float | None
    chain_epsilon: float
    chain_clip: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("psi", "clip", self.clip, 0)
        check_integer("psi", "chains", self.chains, 1)
        check_integer("psi", "burn_in", self.burn_in, 0)
        check_integer("psi", "kept", self.kept, 1)
        if self.copies % self.chains or self.copies // self.chains > self.kept:
            raise ValueError(
                f"psi: each of {self.chains} chains must give the same number of the {self.copies} copies, "
                f"at most one for each of its {self.kept} kept states"
            )
        if self.chain_alpha is not None:
            check_temperature("psi", "chain_alpha", self.chain_alpha)
        check_number("psi", "chain_epsilon", self.chain_epsilon, 0, 4)
        if self.chain_epsilon == 0:
            raise ValueError("psi: chain_epsilon must be above 0, got 0")
        if self.chain_clip is not None:
            check_number("psi", "chain_clip", self.chain_clip, 0)
        check_guided_start("psi", self.guide)

    @property
    def chain(self) -> PCNL:
        """Chains of the first stage."""
        return PCNL(
            self.burn_in + self.kept,
            self.alpha if self.chain_alpha is None else self.chain_alpha,
            self.chain_epsilon,
            self.clip if self.chain_clip is None else self.chain_clip,
        )

    @property
    def precisions(self) -> list[float]:
        """1 / alpha at every step."""
        return [1 / self.alpha] * len(self.plan)

    @property
    def longest(self) -> float:
        """Largest norm of a drift."""
        return self.clip

    def begin(self, batch: Batch) -> PsiState:
        """Return the first states of the chains."""
        point = self.first(batch, self.chains)
        population = Population.equal(batch, self.copies)
        return PsiState(point.x, point.known, population=population)

    def step(self, batch: Batch, state: PsiState, index: int) -> None:
        """Make a step. Those of the chains keep the states at which copies start.

        They are the last state of every chain and others before it, at equal distances within the last `kept`
        iterations.
        """
        super().step(batch, state, index)
        left, each = self.chain.iterations - 1 - index, self.copies // self.chains
        distance = self.kept // each
        if 0 <= left < each * distance and left % distance == 0:
            state.kept.append(Point(state.x, state.known))
        if left == 0:
            state.x, state.known, state.kept = *_woven_points(state.kept), []
            state.population.start_alpha = self.chain.alpha
            state.total = TotalNoise.like(state.x)
            self.show(batch, state.x, state.known.output, self.plan[0].t)


def nfe_of_psi(arguments: Mapping[str, Any]) -> int:
    """Return the forwards of the chains, and of the copies after the first step, whose forward is known."""
    of_chain = 1 + arguments["burn_in"] + arguments["kept"]
    return int(arguments["chains"] * of_chain + arguments["copies"] * (arguments["steps"] - 1))


@register_sampler(
    kind="flow",
    needs_gradient=True,
    algorithm=Psi,
    nfe=nfe_of_psi,
    entries=lambda arguments: arguments["copies"],
)
def psi(
    model: FlowModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    alpha: float,
    clip: float = 1.024,
    copies: int = 10,
    chains: int = 5,
    burn_in: int = 25,
    kept: int = 25,
    chain_alpha: float | None = None,
    chain_epsilon: float = 0.5,
    chain_clip: float | None = None,
    threshold: float = DEFAULT_THRESHOLD,
    resampling: Resampling = DEFAULT_RESAMPLING,
    steps: int = DEFAULT_STEPS,
    schedule: str | Schedule = DEFAULT_SCHEDULE,
    guide: GuidedSteps = ALL_STEPS,
    options: SamplerOptions | None = None,
) -> Result:
    """Start K guided copies at states of Markov chains, weigh and resample them; the best one is the answer.

    Stage 1 runs `chains` chains of `PCNL` for each particle, and takes K of their states. Stage 2 is `das`
    without tempering, from these states; its weights do not count the rewards of the starts twice. The answer
    is the copy of the highest final reward.

    The forward at a state of a chain serves the first step too. NFE per particle:
    chains * (1 + burn_in + kept) + K * (steps - 1), 495 by default. With
    `SamplerOptions(non_finite="plain_noise")` a copy with a non-finite reward gets weight 0, and a copy
    without a usable gradient moves by plain noise.

    Args:
        model: flow to sample from. Chains help only if x0_hat at t = 1 depends on x, see `PCNL`.
        reward: differentiable function of the images, to be increased.
        prompts: one prompt for each particle; a string is one particle.
        alpha: temperature of the rewards, above 0; a smaller one steers more strongly. The authors use 0.1
            for the aesthetic score, 0.03 for counts and 0.02 for layouts.
        clip: largest norm of the drift grad r / alpha of a copy, at least 0. The authors limit the root mean
            square of the gradient; for the aesthetic score and N = 65,536 values their limit is this norm.
        copies: number K of copies of a particle, at least 1. A micro-batch holds as many particles as fit
            with all their copies, at least one; copies are divided into micro-batches too.
        chains: number of chains of a particle, a divisor of K. The states that a chain gives are its last
            one, and others before it at equal distances.
        burn_in: number of iterations of a chain before its states are kept, at least 0.
        kept: number of iterations of a chain whose states are kept, at least K / chains.
        chain_alpha: temperature of the rewards of the chains, above 0. None is alpha. The authors differ from
            alpha for layouts, with 0.1.
        chain_epsilon: step size of the chains, above 0 and at most 4.
        chain_clip: largest norm of the drift of a chain, at least 0. None is clip.
        threshold: effective sample size of the copies, as a share of K in [0, 1], below which they are
            resampled; 0 is never.
        resampling: unbiased resampling, "systematic" or "ssp".
        steps: number of steps, at least 1.
        schedule: diffusion coefficient g(t). Pass a name of `Schedule` or a `Schedule`; scale 0 is the ODE.
        guide: steps of stage 2 that are guided; all by default. Pass a `GuidedSteps` with from_t = 1. Copies
            are weighed at guided steps only, and follow the same law.
        options: seed, micro-batches, callbacks; None means `SamplerOptions()`.

    Returns:
        Result with `weights`, `ess` and `log_z` of the copies.

    Raises:
        ValueError, TypeError: an argument is out of its range (raised before any work), or the model or the
            reward returns a wrong shape or has no gradient.
        NonFiniteError: a reward, gradient or latent is not finite.
    """
    return stepwise(
        psi,
        model,
        reward,
        prompts,
        options=options,
        alpha=alpha,
        clip=clip,
        copies=copies,
        chains=chains,
        burn_in=burn_in,
        kept=kept,
        chain_alpha=chain_alpha,
        chain_epsilon=chain_epsilon,
        chain_clip=chain_clip,
        threshold=threshold,
        resampling=resampling,
        steps=steps,
        schedule=schedule,
        guide=guide,
    ).result()


def _woven_points(points: Sequence[Point]) -> tuple[Tensor, Guidance]:
    """Return latents of all states, (B chains each, *shape), and what is known there."""
    known = [point.known for point in points if point.known is not None]
    return _woven_tensors([point.x for point in points]), Guidance(
        _woven_tensors([one.output for one in known]),
        _woven([one.rewards for one in known]),
        _woven_tensors([one.gradient for one in known]),
        _woven([one.norms for one in known]),
        _woven([one.fallbacks for one in known]),
    )


def _woven(lists: Sequence[Sequence[_Value]]) -> list[_Value]:
    """Return the first value of every list, the second one of every list, and so on."""
    return [value for values in zip(*lists, strict=True) for value in values]


def _woven_tensors(tensors: Sequence[Tensor]) -> Tensor:
    """Return the samples of tensors (n, *shape) in the order of `_woven`."""
    return torch.stack(list(tensors), dim=1).flatten(0, 1)
