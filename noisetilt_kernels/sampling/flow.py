"""Parts that all samplers of flows share: checks, plan of the steps, steps without guidance."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..checks import check_integer, shown
from .guided import GuidedSteps
from .loop import Batch
from .protocols import FlowModel, check_model
from .schedules import Schedule, as_schedule
from .starts import PlainNoise, Start, as_start
from .steps import Step, advance, mean, plan_steps
from .typicality import TotalNoise
from .velocity import velocities_of, velocity_of

DEFAULT_STEPS = 25
DEFAULT_SCHEDULE = "linear"
DEFAULT_START = "noise"
ALL_STEPS = GuidedSteps()


def check_flow(
    function: str,
    steps: int,
    schedule: str | Schedule,
    start: str | Start = DEFAULT_START,
    guide: GuidedSteps = ALL_STEPS,
) -> None:
    """Raise ValueError or TypeError for an argument out of its range that samplers of flows share."""
    check_integer(function, "steps", steps, 1)
    as_schedule(function, schedule)
    as_start(function, start)
    if not isinstance(guide, GuidedSteps):
        raise TypeError(f"{function}: guide must be a GuidedSteps, got {shown(guide)}")


def plan_flow(
    function: str,
    model: FlowModel,
    steps: int,
    schedule: str | Schedule,
    start: Start = PlainNoise(),  # noqa: B008  (has no state)
    guide: GuidedSteps = ALL_STEPS,
) -> list[Step]:
    """Return the steps of a trajectory of the model, numbered after those of its start.

    Raises:
        TypeError: the model lacks a member of `FlowModel`.
        ValueError: the shape of its latents or its times are not valid, or no step would be guided.
    """
    check_model(function, model, FlowModel)
    plan = guide.mark(function, plan_steps(function, model, steps, as_schedule(function, schedule)))
    return [replace(step, index=start.iterations + step.index) for step in plan]


def rewards_of(batch: Batch, decode: Callable[[Tensor], Tensor], x0: Tensor) -> list[float]:
    """Return the rewards of the decoded latents x0 (B K, *shape), in micro-batches."""
    with batch.time("reward"):
        rewards = [batch.rewards(decode(part), prompts) for part, prompts in batch.parts(x0)]
        return torch.cat(rewards).tolist()  # one transfer from the device


def unguided_step(
    batch: Batch, model: FlowModel, x: Tensor, step: Step, total: TotalNoise | None = None
) -> Tensor:
    """Take a step of `base`, with plain noise and without a graph, and record it without a reward.

    Args:
        batch: micro-batch of B particles.
        model: flow.
        x: latents (B K, *shape) of K entries of each particle, at time step.t.
        step: step of the plan.
        total: noise of all steps, to which that of this one is added.
    """
    velocity = velocities_of(batch, model, x, step.t)
    noise = batch.draw(len(x) // len(batch))
    if total is not None:
        total.add(step.sigma * noise, step.sigma)
    x = advance(x, velocity, step, noise)
    batch.record(step.index, step.t)
    return x


def finish_flow(
    batch: Batch,
    model: FlowModel,
    x: Tensor,
    last: Step,
    velocity: Tensor | None = None,
    noise_peaks: Sequence[float] | None = None,
    fallbacks: Sequence[str | None] | None = None,
    ess: Sequence[float] | None = None,
) -> None:
    """Take the last step, without noise or guidance, and finish the batch.

    Args:
        batch: batch to finish.
        model: flow.
        x: latents (B, *shape) at time last.t.
        last: last step of the plan.
        velocity: velocity at x, if it is already known.
        noise_peaks: peak of each particle's noise, see `TotalNoise`; None for an unguided sampler.
        fallbacks, ess: values of each particle's last record, see `StepRecord`.
    """
    if velocity is None:
        velocity = velocity_of(batch, model, x, last.t, batch.prompts)
    x0 = mean(x, velocity, last)
    with batch.time("reward"):
        images = model.decode(x0)
        rewards = batch.rewards(images, batch.prompts)
    batch.record(last.index, last.t, rewards.tolist(), fallbacks=fallbacks, noise_peaks=noise_peaks, ess=ess)
    batch.finish(x0, images, rewards)
