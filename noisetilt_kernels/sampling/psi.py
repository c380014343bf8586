"""Psi-Sampler: start points from Markov chains, then guided copies at a fixed temperature (two stages)."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..checks import check_integer, check_number
from .das import steer
from .flow import ALL_STEPS, DEFAULT_SCHEDULE, DEFAULT_STEPS, check_flow, plan_flow
from .gradients import Guidance
from .guided import GuidedSteps, check_guided_start
from .loop import Batch, start_particles
from .options import SamplerOptions
from .population import (
    DEFAULT_RESAMPLING,
    DEFAULT_THRESHOLD,
    Population,
    check_population,
    check_temperature,
)
from .protocols import FlowModel, Reward
from .registry import register_sampler
from .resampling import Resampling
from .result import Result
from .schedules import Schedule
from .starts import PCNL
from .steps import Step

_Value = TypeVar("_Value")


def check_psi(
    *,
    alpha: float,
    clip: float,
    copies: int,
    chains: int,
    burn_in: int,
    kept: int,
    chain_alpha: float | None,
    chain_epsilon: float,
    chain_clip: float | None,
    threshold: float,
    resampling: Resampling,
    steps: int,
    schedule: str | Schedule,
    guide: GuidedSteps,
) -> None:
    """Raise ValueError or TypeError for an argument of `psi` out of its range."""
    check_population("psi", alpha=alpha, copies=copies, threshold=threshold, resampling=resampling)
    check_number("psi", "clip", clip, 0)
    check_integer("psi", "chains", chains, 1)
    check_integer("psi", "burn_in", burn_in, 0)
    check_integer("psi", "kept", kept, 1)
    if copies % chains or copies // chains > kept:
        raise ValueError(
            f"psi: each of {chains} chains must give the same number of the {copies} copies, "
            f"at most one for each of its {kept} kept states"
        )
    if chain_alpha is not None:
        check_temperature("psi", "chain_alpha", chain_alpha)
    check_number("psi", "chain_epsilon", chain_epsilon, 0, 4)
    if chain_epsilon == 0:
        raise ValueError("psi: chain_epsilon must be above 0, got 0")
    if chain_clip is not None:
        check_number("psi", "chain_clip", chain_clip, 0)
    check_flow("psi", steps, schedule, guide=guide)
    check_guided_start("psi", guide)


def nfe_of_psi(arguments: Mapping[str, Any]) -> int:
    """Return the forwards of the chains, and of the copies after the first step, whose forward is known."""
    of_chain = 1 + arguments["burn_in"] + arguments["kept"]
    return int(arguments["chains"] * of_chain + arguments["copies"] * (arguments["steps"] - 1))


@register_sampler(
    kind="flow",
    needs_gradient=True,
    check=check_psi,
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
    check_psi(
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
    )
    chain = PCNL(
        burn_in + kept,
        alpha if chain_alpha is None else chain_alpha,
        chain_epsilon,
        clip if chain_clip is None else chain_clip,
    )
    plan = plan_flow("psi", model, steps, schedule, chain, guide)
    records = chain.iterations + steps
    with start_particles("psi", model, reward, prompts, options, records, entries=copies) as particles:
        for batch in particles.batches():
            x = thinned(chain, batch, model, plan[0], chains, copies // chains, kept)
            population = Population(batch, copies, threshold, resampling, "reward", chain.alpha)
            steer(batch, model, plan, x, population, [1 / alpha] * steps, clip)
        return particles.result()


def thinned(
    chain: PCNL, batch: Batch, model: FlowModel, step: Step, chains: int, each: int, kept: int
) -> Tensor:
    """Run the chains of every particle, and return `each` states of each one, (B chains each, *shape).

    They are the last state and others at equal distances within the last `kept` iterations. `batch.known`
    gets their velocities and gradients.
    """
    wanted = range(chain.iterations, chain.iterations - kept, -(kept // each))[:each]
    numbered = enumerate(chain.states(batch, model, step, chains))
    xs, known = zip(*[state for number, state in numbered if number in wanted], strict=True)
    x = _woven_tensors(xs)
    batch.known = (
        x,
        Guidance(
            _woven_tensors([state.output for state in known]),
            _woven([state.rewards for state in known]),
            _woven_tensors([state.gradient for state in known]),
            _woven([state.norms for state in known]),
            _woven([state.fallbacks for state in known]),
        ),
    )
    return x


def _woven(lists: Sequence[Sequence[_Value]]) -> list[_Value]:
    """Return the first value of every list, the second one of every list, and so on."""
    return [value for values in zip(*lists, strict=True) for value in values]


def _woven_tensors(tensors: Sequence[Tensor]) -> Tensor:
    """Return the samples of tensors (n, *shape) in the order of `_woven`."""
    return torch.stack(list(tensors), dim=1).flatten(0, 1)
