"""DAS, sequential Monte Carlo of guided copies with a temperature that falls (DAS algorithm 1, for flows)."""

import math
from collections.abc import Sequence

from torch import Tensor

from ..checks import check_number
from .flow import (
    ALL_STEPS,
    DEFAULT_SCHEDULE,
    DEFAULT_START,
    DEFAULT_STEPS,
    check_flow,
    plan_flow,
    unguided_step,
)
from .gradients import drift_of, flow_guidance
from .guided import GuidedSteps, check_guided_start
from .loop import Batch, start_particles
from .options import SamplerOptions
from .population import (
    DEFAULT_COPIES,
    DEFAULT_RESAMPLING,
    DEFAULT_THRESHOLD,
    Population,
    check_population,
    log_ratio,
)
from .protocols import FlowModel, Reward
from .registry import register_sampler
from .resampling import Resampling
from .result import Result
from .schedules import Schedule
from .starts import Start, as_start, forwards_of_start
from .steps import Step, advance
from .typicality import TotalNoise


def check_das(
    *,
    alpha: float,
    copies: int,
    tempering: float,
    threshold: float,
    resampling: Resampling,
    steps: int,
    schedule: str | Schedule,
    start: str | Start,
    guide: GuidedSteps,
) -> None:
    """Raise ValueError or TypeError for an argument of `das` out of its range."""
    check_population("das", alpha=alpha, copies=copies, threshold=threshold, resampling=resampling)
    check_number("das", "tempering", tempering, 0, 1)
    check_flow("das", steps, schedule, start, guide)
    if math.isfinite(as_start("das", start).alpha):
        check_guided_start("das", guide)


@register_sampler(
    kind="flow",
    needs_gradient=True,
    check=check_das,
    nfe=lambda arguments: arguments["copies"] * (arguments["steps"] + forwards_of_start(arguments)),
    entries=lambda arguments: arguments["copies"],
)
def das(
    model: FlowModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    alpha: float,
    copies: int = DEFAULT_COPIES,
    tempering: float = 0.87,
    threshold: float = DEFAULT_THRESHOLD,
    resampling: Resampling = DEFAULT_RESAMPLING,
    steps: int = DEFAULT_STEPS,
    schedule: str | Schedule = DEFAULT_SCHEDULE,
    start: str | Start = DEFAULT_START,
    guide: GuidedSteps = ALL_STEPS,
    options: SamplerOptions | None = None,
) -> Result:
    """Guide K copies of a particle by the gradient, weigh and resample them; the heaviest one is the answer.

    The weighted copies follow the law of `base` times exp(r(x_0) / alpha) as K grows. Each copy moves by
    x' = mu + sigma eps + sigma^2 lambda_{i+1} grad r(x0_hat) / alpha, and its weight has the twist
    exp(lambda_i r(x0_hat) / alpha); see `population`. The shares lambda_i rise from 0 to 1.

    With K = 1 and alpha -> infinity the latents are those of `base`. NFE per particle: K * steps. With
    `SamplerOptions(non_finite="plain_noise")` a copy with a non-finite reward gets weight 0, and a copy
    without a usable gradient moves by plain noise.

    Args:
        model: flow to sample from.
        reward: differentiable function of the images, to be increased.
        prompts: one prompt for each particle; a string is one particle.
        alpha: temperature of the rewards, above 0; a smaller one steers more strongly. The authors use 0.005
            for the aesthetic score, 0.01 for CLIPScore and 0.0001 for PickScore without its factor 100.
        copies: number K of copies of a particle, at least 1. A micro-batch holds as many particles as fit
            with all their copies, at least one; copies are divided into micro-batches too.
        tempering: share of the steps in which lambda rises to 1, in [0, 1]; 0 is lambda = 1 throughout.
            lambda_i = 2^(i / (tempering steps)) - 1. The authors' (1 + gamma)^i - 1 has gamma = 0.008 for 100
            steps and 0.1 for 8 steps, and reaches 1 at 0.87 of the steps in both cases.
        threshold: effective sample size of the copies, as a share of K in [0, 1], below which they are
            resampled; 0 is never.
        resampling: unbiased resampling, "systematic" or "ssp".
        steps: number of steps, at least 1.
        schedule: diffusion coefficient g(t). Pass a name of `Schedule` or a `Schedule`; scale 0 is the ODE.
        start: start point x_1, "noise" or "pcnl", or a `Start` such as `PCNL`. Every copy has its own chain,
            whose forwards are counted in addition. The weights do not count its rewards twice.
        guide: steps that are guided; all by default. Pass a `GuidedSteps`, with from_t = 1 for the start
            "pcnl". Copies are weighed at guided steps only, and follow the same law.
        options: seed, micro-batches, callbacks; None means `SamplerOptions()`.

    Returns:
        Result with `weights`, `ess` and `log_z` of the copies.

    Raises:
        ValueError, TypeError: an argument is out of its range (raised before any work), or the model or the
            reward returns a wrong shape or has no gradient.
        NonFiniteError: a reward, gradient or latent is not finite.
    """
    check_das(
        alpha=alpha,
        copies=copies,
        tempering=tempering,
        threshold=threshold,
        resampling=resampling,
        steps=steps,
        schedule=schedule,
        start=start,
        guide=guide,
    )
    start = as_start("das", start)
    plan = plan_flow("das", model, steps, schedule, start, guide)
    shares = tempered(steps, tempering)
    with start_particles(
        "das", model, reward, prompts, options, start.iterations + steps, entries=copies
    ) as particles:
        for batch in particles.batches():
            x = start(batch, model, plan[0], copies)
            population = Population(batch, copies, threshold, resampling, start_alpha=start.alpha)
            steer(batch, model, plan, x, population, [share / alpha for share in shares])
        return particles.result()


def steer(
    batch: Batch,
    model: FlowModel,
    plan: Sequence[Step],
    x: Tensor,
    population: Population,
    precisions: Sequence[float],
    clip: float = math.inf,
) -> None:
    """Move guided and weighted copies x (B K, *shape) through all steps, and finish the batch.

    Args:
        batch: micro-batch of B particles.
        model: flow.
        plan: steps.
        x: latents of all copies at the first step.
        population: their weights.
        precisions: lambda_i / alpha of each step.
        clip: largest norm of a drift.
    """
    total = TotalNoise(x)
    for step, precision, next_precision in zip(plan[:-1], precisions[:-1], precisions[1:], strict=True):
        if not step.guided:  # by the kernel of `base`, with the last twist: no weight changes
            x = unguided_step(batch, model, x, step, total)
            continue
        guidance = flow_guidance(batch, model, x, step)
        rewards = guidance.rewards
        population.weigh([precision * r for r in rewards], rewards, guidance.fallbacks)
        drift = drift_of(guidance, next_precision, clip)
        x, velocity, drift, total.sum = population.resample(x, guidance.output, drift, total.sum)
        noise = batch.draw(len(x) // len(batch))
        shift = step.sigma**2 * drift
        x = advance(x, velocity, step, noise) + shift
        total.add(step.sigma * noise + shift, step.sigma)
        population.correct(log_ratio(step.sigma, drift, noise))
        population.record(step, rewards, guidance.norms)
    population.finish(model, x, plan[-1], lambda rewards: [precisions[-1] * r for r in rewards], total.peaks)


def tempered(steps: int, tempering: float) -> list[float]:
    """Return lambda_i of each step i: rising from 0 to 1 within a share of the steps, or 1 throughout."""
    if tempering == 0:
        return [1.0] * steps
    # min first: a short rise would overflow
    return [2.0 ** min(i / (tempering * steps), 1.0) - 1 for i in range(steps - 1)] + [1.0]
