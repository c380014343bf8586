"""The base sampler: the unguided reverse SDE of a flow (DESIGN section 7; NoiseTilt eq. 4)."""

from collections.abc import Sequence
from dataclasses import dataclass

from .batch import Batch
from .flow import (
    DEFAULT_SCHEDULE,
    DEFAULT_START,
    DEFAULT_STEPS,
    FlowAlgorithm,
    FlowState,
)
from .options import SamplerOptions
from .protocols import FlowModel, Reward
from .registry import register_sampler
from .result import Result
from .schedules import Schedule
from .starts import Start, forwards_of_start
from .steps import Step
from .stepwise import stepwise


@dataclass(kw_only=True)
class Base(FlowAlgorithm[FlowState]):
    """Steps of `base`."""

    name, state_type = "base", FlowState

    def guided_step(self, batch: Batch, state: FlowState, step: Step) -> None:
        """Make an unguided step."""
        self.unguided_step(batch, state, step)


@register_sampler(
    kind="flow",
    needs_gradient=False,
    algorithm=Base,
    nfe=lambda arguments: arguments["steps"] + forwards_of_start(arguments),
)
def base(
    model: FlowModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    steps: int = DEFAULT_STEPS,
    schedule: str | Schedule = DEFAULT_SCHEDULE,
    start: str | Start = DEFAULT_START,
    options: SamplerOptions | None = None,
) -> Result:
    """Sample without guidance, by the reverse SDE of the flow (NoiseTilt eq. 4).

    The reward judges finished images only. NFE per particle: steps.

    Args:
        model: flow to sample from.
        reward: function that judges the images.
        prompts: one prompt for each particle; a string is one particle.
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
        base,
        model,
        reward,
        prompts,
        options=options,
        steps=steps,
        schedule=schedule,
        start=start,
    ).result()
