"""NTRK, the noise-tilted reverse kernel (DESIGN section 7; NoiseTilt eq. 11 and 12)."""

import math
from collections.abc import Sequence

import torch

from ..checks import check_choice, check_number
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
from .gradients import cosines, flow_guidance
from .guided import GuidedSteps
from .loop import start_particles
from .operators import OPERATORS, operator_by_name
from .options import SamplerOptions
from .protocols import FlowModel, Reward
from .registry import register_sampler
from .result import Result
from .schedules import Schedule
from .starts import Start, as_start, forwards_of_start
from .steps import advance
from .typicality import TotalNoise


def check_ntrk(
    *,
    rho: float,
    operator: str,
    steps: int,
    schedule: str | Schedule,
    start: str | Start,
    guide: GuidedSteps,
) -> None:
    """Raise ValueError or TypeError for an argument of `ntrk` out of its range."""
    check_number("ntrk", "rho", rho, 0, 1)
    check_choice("ntrk", "operator", operator, OPERATORS)
    check_flow("ntrk", steps, schedule, start, guide)


@register_sampler(
    kind="flow",
    needs_gradient=True,
    check=check_ntrk,
    nfe=lambda arguments: arguments["steps"] + forwards_of_start(arguments),
)
def ntrk(
    model: FlowModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    rho: float = 0.3,
    operator: str = "w",
    steps: int = DEFAULT_STEPS,
    schedule: str | Schedule = DEFAULT_SCHEDULE,
    start: str | Start = DEFAULT_START,
    guide: GuidedSteps = ALL_STEPS,
    options: SamplerOptions | None = None,
) -> Result:
    """Sample with tilted noise sqrt(rho) W(grad r(x0_hat)) + sqrt(1 - rho) eps (NoiseTilt eq. 11 and 12).

    With rho = 0 the latents are those of `base`, bit for bit. A particle with an exactly zero gradient gets
    plain noise at that step, and its record gives the reason. NFE per particle: steps, because the forward
    for the gradient gives the velocity as well.

    Args:
        model: flow to sample from.
        reward: differentiable function of the images, to be increased.
        prompts: one prompt for each particle; a string is one particle.
        rho: guidance strength in [0, 1]; a large one destroys the images, so compare 0.003, 0.01, 0.03, 0.1
            and 0.3 with a held-out reward (docs/rho.md). With the operators "w", "wgnc" and "norm" the noise
            keeps its norm at every strength; a larger rho leaves less of it random.
        operator: whitening operator that turns the gradient into noise: "w", its parts "2os+tiles" and "2os",
            "wgnc", "norm" or "identity".
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
    check_ntrk(rho=rho, operator=operator, steps=steps, schedule=schedule, start=start, guide=guide)
    start = as_start("ntrk", start)
    plan = plan_flow("ntrk", model, steps, schedule, start, guide)
    whiten = operator_by_name("ntrk", operator, tuple(model.shape))
    with start_particles("ntrk", model, reward, prompts, options, start.iterations + steps) as particles:
        for batch in particles.batches():
            x = start(batch, model, plan[0])
            total = TotalNoise(x)
            for step in plan[:-1]:
                if not step.guided:
                    x = unguided_step(batch, model, x, step, total)
                    continue
                guidance = flow_guidance(batch, model, x, step)
                with batch.time("whitening"):
                    direction = whiten(guidance.gradient)
                noise = batch.draw()
                tilted = math.sqrt(rho) * direction + math.sqrt(1 - rho) * noise
                used = torch.where(guidance.usable, tilted, noise)
                total.add(step.sigma * used, step.sigma)
                x = advance(x, guidance.output, step, used)
                similarity = cosines(guidance, direction)
                batch.record(
                    step.index, step.t, guidance.rewards, guidance.norms, similarity, guidance.fallbacks
                )
            finish_flow(batch, model, x, plan[-1], noise_peaks=total.peaks())
        return particles.result()
