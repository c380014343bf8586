"""NTRK, the noise-tilted reverse kernel (DESIGN section 7; NoiseTilt eq. 11 and 12)."""

import math
from collections.abc import Sequence
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
from .gradients import cosines
from .guided import GuidedSteps
from .operators import Operator, check_operator, operator_by_name
from .options import SamplerOptions
from .protocols import FlowModel, Reward
from .registry import register_sampler
from .result import Result
from .schedules import Schedule
from .starts import Start, forwards_of_start
from .steps import Step
from .stepwise import stepwise


@dataclass(kw_only=True)
class NTRK(GuidedFlow):
    """Steps of `ntrk`."""

    name = "ntrk"

    rho: float
    operator: str | Operator

    def __post_init__(self) -> None:
        check_number("ntrk", "rho", self.rho, 0, 1)
        check_operator("ntrk", self.operator)
        super().__post_init__()

    def prepare(self, model: FlowModel) -> None:
        """Keep the model and the operator, and plan the steps."""
        super().prepare(model)
        self._whiten = operator_by_name("ntrk", self.operator, tuple(model.shape))

    def guided_step(self, batch: Batch, state: FlowState, step: Step) -> None:
        """Tilt the noise of a step by the whitened gradient."""
        guidance = self.guidance(batch, state, step)
        with batch.time("whitening"):
            direction = self._whiten(guidance.gradient)
        noise = batch.draw()
        tilted = math.sqrt(self.rho) * direction + math.sqrt(1 - self.rho) * noise
        used = torch.where(guidance.usable, tilted, noise)
        self.take_step(state, guidance.output, step, used)
        similarity = cosines(guidance, direction)
        batch.record(step.index, step.t, guidance.rewards, guidance.norms, similarity, guidance.fallbacks)


@register_sampler(
    kind="flow",
    needs_gradient=True,
    algorithm=NTRK,
    nfe=lambda arguments: arguments["steps"] + forwards_of_start(arguments),
)
def ntrk(
    model: FlowModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    rho: float = 0.3,
    operator: str | Operator = "w",
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
            "wgnc", "norm" or "identity". Pass a name, or a function (B, *shape) -> the same shape.
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
        ntrk,
        model,
        reward,
        prompts,
        options=options,
        rho=rho,
        operator=operator,
        steps=steps,
        schedule=schedule,
        start=start,
        guide=guide,
    ).result()
