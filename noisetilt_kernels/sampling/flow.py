"""The trajectory that all samplers of flows share; they differ in how they make a step."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from ..checks import check_integer
from .protocols import FlowModel, Reward, check_model
from .run import Batch, Finish, Result, Run, run_particles
from .schedules import Schedule, as_schedule
from .steps import Step, mean, plan_steps

DEFAULT_STEPS = 25


class State(NamedTuple):
    """Particles (B, *shape) at some time, and their velocity where it is already known."""

    x: Tensor
    velocity: Tensor | None = None


Move = Callable[[Batch, Step, State], State]
"""Takes a micro-batch one step on and records it."""


def velocity_of(batch: Batch, model: FlowModel, x: Tensor, t: float, prompts: Sequence[str]) -> Tensor:
    """v(x, t) of the model, counted.

    Raises:
        ValueError: it has another shape than x.
    """
    velocity = batch.meter.forward(model.velocity, x, t, prompts)
    if velocity.shape != x.shape:
        raise ValueError(
            f"{batch.method}: model.velocity must return {tuple(x.shape)}, as it got, not {tuple(velocity.shape)}"
        )
    return velocity.float()


def sample_flow(
    method: str,
    model: FlowModel,
    reward: Reward,
    prompts: str | Sequence[str],
    steps: int,
    schedule: str | Schedule,
    run: Run,
    move: Move,
    entries: int = 1,
) -> Result:
    """Run all particles from noise to data: `move` for every step but the last, which is the same for all methods.

    entries: how many batch entries the model is given for each particle.

    Raises:
        ValueError, TypeError: an argument out of its range; before any work.
    """
    check_model(method, model, FlowModel)
    check_integer(method, "steps", steps, 1)
    planned = plan_steps(method, model, steps, as_schedule(method, schedule))

    def travel(batch: Batch) -> Finish:
        state = State(batch.draw())
        *moves, last = planned
        for step in moves:
            state = move(batch, step, state)
        x, velocity = state
        if velocity is None:
            velocity = velocity_of(batch, model, x, last.t, batch.prompts)
        x0 = mean(x, velocity, last)
        with batch.meter.time("reward"):
            images = model.decode(x0)
            rewards = batch.rewards(images, batch.prompts)
        batch.record(last.index, last.t, rewards.tolist())
        return Finish(x0, images, rewards)

    return run_particles(method, model, reward, prompts, run, travel, steps, entries)
