"""Parts that all samplers of flows share: checks, plan of the steps, velocities, the unguided last step."""

from collections.abc import Sequence

from torch import Tensor

from ..checks import check_integer
from .loop import Batch
from .protocols import FlowModel, check_model
from .schedules import Schedule, as_schedule
from .steps import Step, mean, plan_steps

DEFAULT_STEPS = 25
DEFAULT_SCHEDULE = "linear"


def check_flow(function: str, steps: int, schedule: str | Schedule) -> None:
    """Raise ValueError or TypeError unless steps and schedule are valid arguments of a sampler of flows."""
    check_integer(function, "steps", steps, 1)
    as_schedule(function, schedule)


def plan_flow(function: str, model: FlowModel, steps: int, schedule: str | Schedule) -> list[Step]:
    """Return the steps of a trajectory of the model.

    Raises:
        TypeError: the model lacks a member of `FlowModel`.
        ValueError: the shape of its latents or its times are not valid.
    """
    check_model(function, model, FlowModel)
    return plan_steps(function, model, steps, as_schedule(function, schedule))


def velocity_of(batch: Batch, model: FlowModel, x: Tensor, t: float, prompts: Sequence[str]) -> Tensor:
    """Return v(x, t), float32, and count the forward.

    Raises:
        ValueError: the velocity has another shape than x.
    """
    velocity = batch.meter.forward(model.velocity, x, t, prompts)
    if velocity.shape != x.shape:
        raise ValueError(
            f"{batch.method}: model.velocity must return {tuple(x.shape)}, the shape of its input, "
            f"got {tuple(velocity.shape)}"
        )
    return velocity.float()


def finish_flow(
    batch: Batch,
    model: FlowModel,
    x: Tensor,
    last: Step,
    velocity: Tensor | None = None,
    noise_peaks: Sequence[float] | None = None,
) -> None:
    """Take the last step, without noise or guidance, and finish the batch.

    Args:
        batch: batch to finish.
        model: flow.
        x: latents (B, *shape) at time last.t.
        last: last step of the plan.
        velocity: velocity at x, if it is already known.
        noise_peaks: peak of each particle's noise, see `TotalNoise`; None for an unguided sampler.
    """
    if velocity is None:
        velocity = velocity_of(batch, model, x, last.t, batch.prompts)
    x0 = mean(x, velocity, last)
    with batch.time("reward"):
        images = model.decode(x0)
        rewards = batch.rewards(images, batch.prompts)
    batch.record(last.index, last.t, rewards.tolist(), noise_peaks=noise_peaks)
    batch.finish(x0, images, rewards)
