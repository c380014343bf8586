"""The base sampler: the unguided reverse SDE of a flow (DESIGN section 7; NoiseTilt eq. 4)."""

from collections.abc import Sequence

from .flow import (
    DEFAULT_SCHEDULE,
    DEFAULT_START,
    DEFAULT_STEPS,
    check_flow,
    finish_flow,
    plan_flow,
    unguided_step,
)
from .loop import start_particles
from .options import SamplerOptions
from .protocols import FlowModel, Reward
from .registry import register_sampler
from .result import Result
from .schedules import Schedule
from .starts import Start, as_start, forwards_of_start


def check_base(*, steps: int, schedule: str | Schedule, start: str | Start) -> None:
    """Raise ValueError or TypeError for an argument of `base` out of its range."""
    check_flow("base", steps, schedule, start)


@register_sampler(
    kind="flow",
    needs_gradient=False,
    check=check_base,
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
        start: start point x_1, "noise" or "pcnl", or a `Start` such as `PCNL`. The forwards of a chain are
            counted in addition.
        options: seed, micro-batches, callbacks; None means `SamplerOptions()`.

    Raises:
        ValueError, TypeError: an argument is out of its range (raised before any work), or the model or the
            reward returns a wrong shape.
        NonFiniteError: a reward or latent is not finite.
    """
    check_base(steps=steps, schedule=schedule, start=start)
    start = as_start("base", start)
    plan = plan_flow("base", model, steps, schedule, start)
    with start_particles("base", model, reward, prompts, options, start.iterations + steps) as particles:
        for batch in particles.batches():
            x = start(batch, model, plan[0])
            for step in plan[:-1]:
                x = unguided_step(batch, model, x, step)
            finish_flow(batch, model, x, plan[-1])
        return particles.result()
