"""DPS, the mean-shifted reverse kernel (DESIGN section 7; NoiseTilt eq. 6)."""

import math
from collections.abc import Callable, Sequence

import torch

from ..checks import check_number
from .flow import (
    ALL_STEPS,
    DEFAULT_SCHEDULE,
    DEFAULT_START,
    DEFAULT_STEPS,
    check_flow,
    finish_flow,
    plan_flow,
    unguided_step,
)
from .gradients import flow_guidance
from .guided import GuidedSteps
from .loop import start_particles
from .options import SamplerOptions
from .protocols import FlowModel, Reward
from .registry import register_sampler
from .result import Result
from .schedules import Schedule
from .starts import Start, as_start, forwards_of_start
from .steps import advance
from .typicality import TotalNoise


def check_strength(function: str, strength: float | Callable[[float], float]) -> None:
    """Raise ValueError or TypeError unless the strength is a finite number or a function of t."""
    if not callable(strength):
        check_number(function, "strength", strength, -math.inf)


def strength_at(strength: float | Callable[[float], float], t: float) -> float:
    """Return the strength at time t."""
    return strength(t) if callable(strength) else strength


def check_dps(
    *,
    strength: float | Callable[[float], float],
    steps: int,
    schedule: str | Schedule,
    start: str | Start,
    guide: GuidedSteps,
) -> None:
    """Raise ValueError or TypeError for an argument of `dps` out of its range."""
    check_strength("dps", strength)
    check_flow("dps", steps, schedule, start, guide)


@register_sampler(
    kind="flow",
    needs_gradient=True,
    check=check_dps,
    nfe=lambda arguments: arguments["steps"] + forwards_of_start(arguments),
)
def dps(
    model: FlowModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    strength: float | Callable[[float], float],
    steps: int = DEFAULT_STEPS,
    schedule: str | Schedule = DEFAULT_SCHEDULE,
    start: str | Start = DEFAULT_START,
    guide: GuidedSteps = ALL_STEPS,
    options: SamplerOptions | None = None,
) -> Result:
    """Sample with lambda_t grad r(x0_hat) added to the mean of each step (NoiseTilt eq. 6).

    With strength = 0 the latents are those of `base`, bit for bit. NFE per particle: steps, because the
    forward for the gradient gives the velocity as well.

    Args:
        model: flow to sample from.
        reward: differentiable function of the images, to be increased.
        prompts: one prompt for each particle; a string is one particle.
        strength: factor lambda_t of the gradient. Pass a number or a function of t. It multiplies the
            gradient itself, so a good value depends on the reward.
        steps: number of steps, at least 1.
        schedule: diffusion coefficient g(t). Pass a name of `Schedule` or a `Schedule`; scale 0 is the ODE.
        start: start point x_1, "noise" or "pcnl", or a `Start` such as `PCNL`. The forwards of a chain are
            counted in addition.
        guide: steps that are guided; all by default. Pass a `GuidedSteps`.
        options: seed, micro-batches, callbacks; None means `SamplerOptions()`.

    Raises:
        ValueError, TypeError: an argument is out of its range (raised before any work), or the model or the
            reward returns a wrong shape or has no gradient.
        NonFiniteError: a reward, gradient or latent is not finite.
    """
    check_dps(strength=strength, steps=steps, schedule=schedule, start=start, guide=guide)
    start = as_start("dps", start)
    plan = plan_flow("dps", model, steps, schedule, start, guide)
    with start_particles("dps", model, reward, prompts, options, start.iterations + steps) as particles:
        for batch in particles.batches():
            x = start(batch, model, plan[0])
            total = TotalNoise(x)
            for step in plan[:-1]:
                if not step.guided:
                    x = unguided_step(batch, model, x, step, total)
                    continue
                guidance = flow_guidance(batch, model, x, step)
                noise = batch.draw()
                shift = torch.where(guidance.usable, strength_at(strength, step.t) * guidance.gradient, 0)
                x = advance(x, guidance.output, step, noise) + shift
                total.add(step.sigma * noise + shift, step.sigma)
                batch.record(
                    step.index, step.t, guidance.rewards, guidance.norms, fallbacks=guidance.fallbacks
                )
            finish_flow(batch, model, x, plan[-1], noise_peaks=total.peaks())
        return particles.result()
