"""DPS, the mean-shifted reverse kernel (DESIGN section 7; NoiseTilt eq. 6)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..checks import check_number
from .batch import Batch
from .flow import (
    ALL_STEPS,
    DEFAULT_SCHEDULE,
    DEFAULT_START,
    DEFAULT_STEPS,
    FlowState,
    GuidedFlow,
)
from .guided import GuidedSteps
from .options import SamplerOptions
from .protocols import FlowModel, Reward
from .registry import register_sampler
from .result import Result
from .schedules import Schedule
from .starts import Start, forwards_of_start
from .steps import Step
from .stepwise import stepwise


def check_strength(function: str, strength: float | Callable[[float], float]) -> None:
    """Raise ValueError or TypeError unless the strength is a finite number or a function of t."""
    if not callable(strength):
        check_number(function, "strength", strength, -math.inf)


def strength_at(strength: float | Callable[[float], float], t: float) -> float:
    """Return the strength at time t."""
    return strength(t) if callable(strength) else strength


@dataclass(kw_only=True)
class DPS(GuidedFlow):
    """Steps of `dps`."""

    name = "dps"

    strength: float | Callable[[float], float]

    def __post_init__(self) -> None:
        check_strength("dps", self.strength)
        super().__post_init__()

    def guided_step(self, batch: Batch, state: FlowState, step: Step) -> None:
        """Shift the mean of a step along the gradient."""
        guidance = self.guidance(batch, state, step)
        noise = batch.draw()
        shift = torch.where(guidance.usable, strength_at(self.strength, step.t) * guidance.gradient, 0)
        self.take_step(state, guidance.output, step, noise, shift)
        batch.record(step.index, step.t, guidance.rewards, guidance.norms, fallbacks=guidance.fallbacks)


@register_sampler(
    kind="flow",
    needs_gradient=True,
    algorithm=DPS,
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
        start: start point x_1, "noise" or "pcnl", or a `Start`: `PCNL` or `FromImage`. The forwards of a
            chain are counted in addition.
        guide: steps that are guided; all by default. Pass a `GuidedSteps`.
        options: seed, micro-batches, callbacks; None means `SamplerOptions()`.

    Raises:
        ValueError, TypeError: an argument is out of its range (raised before any work), or the model or the
            reward returns a wrong shape or has no gradient.
        NonFiniteError: a reward, gradient or latent is not finite.
    """
    return stepwise(
        dps,
        model,
        reward,
        prompts,
        options=options,
        strength=strength,
        steps=steps,
        schedule=schedule,
        start=start,
        guide=guide,
    ).result()
