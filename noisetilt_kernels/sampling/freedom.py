"""FreeDoM, a mean-shifted reverse kernel that travels back in time (FreeDoM algorithm 2, for flows)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..checks import check_choice, check_integer, check_number
from .batch import Batch
from .dps import check_strength, strength_at
from .flow import (
    ALL_STEPS,
    DEFAULT_SCHEDULE,
    DEFAULT_START,
    DEFAULT_STEPS,
    FlowState,
    GuidedFlow,
)
from .gradients import column_of, norm_of_each
from .guided import GuidedSteps
from .options import SamplerOptions
from .protocols import FlowModel, Reward
from .registry import register_sampler
from .result import Result
from .schedules import Schedule
from .starts import Start, forwards_of_start
from .steps import Step, renoise
from .stepwise import stepwise

Scaling = Literal["velocity", "none"]
"""Scaling of the gradient, see `freedom`."""


@dataclass(kw_only=True)
class FreeDoM(GuidedFlow):
    """Steps of `freedom`."""

    name = "freedom"
    fixed = (*GuidedFlow.fixed, "travel", "travel_from", "travel_to")

    strength: float | Callable[[float], float]
    scaling: Scaling
    travel: int
    travel_from: float
    travel_to: float

    def __post_init__(self) -> None:
        check_strength("freedom", self.strength)
        check_choice("freedom", "scaling", self.scaling, get_args(Scaling))
        check_integer("freedom", "travel", self.travel, 1)
        check_number("freedom", "travel_from", self.travel_from, 0, 1)
        check_number("freedom", "travel_to", self.travel_to, 0, 1)
        super().__post_init__()

    def prepare(self, model: FlowModel) -> None:
        """Keep the model and plan the steps of all passes."""
        super().prepare(model)
        window = travelling_steps(self.steps, self.travel_from, self.travel_to)
        passes = plan_passes(self.plan, self.travel, window)
        self.plan = [step for step, _ in passes]
        self._travels = {step.index for step, travels in passes if travels}

    def step(self, batch: Batch, state: FlowState, index: int) -> None:
        """Make a step, and travel back if another pass follows."""
        super().step(batch, state, index)
        if index in self._travels:
            step = self.plan[index - self.chain.iterations]
            state.x = renoise(state.x, step.t - step.delta, step.t, batch.draw())

    def guided_step(self, batch: Batch, state: FlowState, step: Step) -> None:
        """Shift the mean of a step along the gradient."""
        guidance = self.guidance(batch, state, step)
        noise = batch.draw()
        scale: float | Tensor = strength_at(self.strength, step.t)
        if self.scaling == "velocity":
            lengths = step.delta * norm_of_each(guidance.output) / norm_of_each(guidance.gradient)
            scale = column_of((scale * lengths).to(noise.dtype), noise)
        shift = torch.where(guidance.usable, scale * guidance.gradient, 0)
        self.take_step(state, guidance.output, step, noise, shift)  # renoising is not steered
        batch.record(step.index, step.t, guidance.rewards, guidance.norms, fallbacks=guidance.fallbacks)


def nfe_of_freedom(arguments: Mapping[str, Any]) -> int:
    """Return the number of function evaluations of a particle: one for each pass."""
    steps = arguments["steps"]
    window = travelling_steps(steps, arguments["travel_from"], arguments["travel_to"])
    return int(steps + len(window) * (arguments["travel"] - 1) + forwards_of_start(arguments))


@register_sampler(kind="flow", needs_gradient=True, algorithm=FreeDoM, nfe=nfe_of_freedom)
def freedom(
    model: FlowModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    strength: float | Callable[[float], float] = 0.02,
    scaling: Scaling = "velocity",
    travel: int = 3,
    travel_from: float = 0.4,
    travel_to: float = 0.7,
    steps: int = DEFAULT_STEPS,
    schedule: str | Schedule = DEFAULT_SCHEDULE,
    start: str | Start = DEFAULT_START,
    guide: GuidedSteps = ALL_STEPS,
    options: SamplerOptions | None = None,
) -> Result:
    """Sample with kappa_t grad r(x0_hat) added to each step, and repeat the steps in the middle.

    A pass is a step with one forward: x_s = mu + sigma eps + kappa_t grad r(x0_hat). In a window of steps,
    each step is made in several passes. Between two of them x_s is brought back to time t by the noise of the
    forward process. The window is travel_from n <= j < travel_to n for the n steps j = n-1, ..., 0, as in the
    released code, so 25 steps have 41 passes. The first step does not travel, because nothing is left at
    t = 1, and the last one does not, because it is not guided.

    With strength = 0 and travel = 1 the latents are those of `base`, bit for bit. NFE per particle: the
    number of passes, steps + (travel - 1) * (steps in the window). There is a record for each pass. A step
    that `guide` leaves out travels too, and is guided in none of its passes.

    Args:
        model: flow to sample from.
        reward: differentiable function of the images, to be increased.
        prompts: one prompt for each particle; a string is one particle.
        strength: factor of the scaled gradient. Pass a number or a function of t.
        scaling: scaling of the gradient, "velocity" or "none". With "velocity" kappa_t = strength * |delta v|
            / |grad r|, so a push is this share of the step along the velocity, for every reward. The released
            code does the same to the noise that its model predicts. With "none" kappa_t = strength, as in
            `dps`.
        travel: number of passes of a step in the window, at least 1.
        travel_from: end of the window near the data, as a share of the steps in [0, 1].
        travel_to: end of the window near the noise, as a share of the steps in [0, 1].
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
        freedom,
        model,
        reward,
        prompts,
        options=options,
        strength=strength,
        scaling=scaling,
        travel=travel,
        travel_from=travel_from,
        travel_to=travel_to,
        steps=steps,
        schedule=schedule,
        start=start,
        guide=guide,
    ).result()


def travelling_steps(steps: int, travel_from: float, travel_to: float) -> range:
    """Return the steps that travel, counted from the data: 0 is the last step."""
    # rounded, because 0.07 * 100 is a little more than 7
    first, end = (math.ceil(round(share * steps, 9)) for share in (travel_from, travel_to))
    return range(max(1, first), min(steps - 1, end))


def plan_passes(plan: Sequence[Step], travel: int, window: range) -> list[tuple[Step, bool]]:
    """Return the steps of all passes, numbered, and True for a pass after which x travels back."""
    passes = []
    for left, step in zip(reversed(range(len(plan))), plan, strict=True):
        passes += [(step, True)] * ((travel - 1) * (left in window)) + [(step, False)]
    return [
        (replace(step, index=plan[0].index + number), travels)
        for number, (step, travels) in enumerate(passes)
    ]
