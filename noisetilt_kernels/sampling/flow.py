"""Parts that all samplers of flows share: checks, plan of the steps, start, unguided steps, last step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..checks import check_integer, shown
from .algorithm import Algorithm
from .batch import Batch
from .gradients import Guidance, flow_guidance
from .guided import GuidedSteps
from .protocols import FlowModel, decoder_of_estimates
from .schedules import Schedule, as_schedule
from .starts import PlainNoise, Point, Start, as_start
from .steps import Step, advance, denoised, mean, plan_steps
from .typicality import TotalNoise
from .velocity import velocities_of

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
        ValueError: the times of the model are not valid, or no step would be guided.
    """
    plan = plan_steps(function, model, steps, as_schedule(function, schedule))
    plan = [replace(step, index=index) for index, step in enumerate(plan[start.left_out(steps) :])]
    plan = guide.mark(function, plan)
    return [replace(step, index=start.iterations + step.index) for step in plan]


def plain_plan(plan: Sequence[Step]) -> list[list[float]]:
    """Return the numbers of steps in which a run and a state must agree, see `Algorithm.identity`."""
    return [[step.t, step.delta, step.g, step.sigma, step.start] for step in plan]


@dataclass
class FlowState(Point):
    """State of a sampler of flows: latents of K entries of each particle.

    Args:
        total: noise of all steps together, for a guided sampler.
    """

    total: TotalNoise | None = None


FlowStateT = TypeVar("FlowStateT", bound=FlowState)


@dataclass(kw_only=True)
class FlowAlgorithm(Algorithm[FlowStateT]):
    """Algorithm of a sampler of flows: its start, unguided steps as in `base`, and the last step.

    A guided sampler defines `guided_step`.

    Attributes:
        model: flow.
        plan: steps after those of the start.
    """

    fixed: ClassVar[tuple[str, ...]] = ("steps", "schedule", "start")

    steps: int = DEFAULT_STEPS
    schedule: str | Schedule = DEFAULT_SCHEDULE
    start: str | Start = DEFAULT_START
    guide: GuidedSteps = ALL_STEPS
    model: FlowModel = field(init=False, repr=False)
    plan: list[Step] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_flow(self.name, self.steps, self.schedule, self.start, self.guide)

    def prepare(self, model: FlowModel) -> None:
        """Keep the model and plan the steps."""
        self.model = model
        self.plan = plan_flow(self.name, model, self.steps, self.schedule, self.chain, self.guide)

    @property
    def identity(self) -> dict[str, Any]:
        """Steps and start."""
        start = self.chain
        return {
            **super().identity,
            "plan": plain_plan(self.plan),
            "start": repr(start) if is_dataclass(start) else type(start).__name__,
        }

    @property
    def chain(self) -> Start:
        """Start of the trajectories."""
        return as_start(self.name, self.start)

    @property
    def records(self) -> int:
        """Number of steps, with those of the start."""
        return self.chain.iterations + len(self.plan)

    def first(self, batch: Batch, copies: int = 1) -> Point:
        """Return the first latents of `copies` copies of every particle, (B copies, *shape)."""
        return self.chain.begin(batch, self.model, self.plan[0], copies)

    def begin(self, batch: Batch) -> FlowStateT:
        """Return the first latents."""
        point = self.first(batch)
        state: FlowStateT = self.state_type(point.x, point.known)
        return state

    def step(self, batch: Batch, state: FlowStateT, index: int) -> None:
        """Make a step of the start, a guided or unguided step, or the last step."""
        number = index - self.chain.iterations
        if number < 0:
            self.chain.move(batch, self.model, replace(self.plan[0], index=index), state)
        elif number == len(self.plan) - 1:
            self.finish(batch, state, self.plan[number])
        elif self.plan[number].guided:
            self.guided_step(batch, state, self.plan[number])
        else:
            self.unguided_step(batch, state, self.plan[number])

    def guided_step(self, batch: Batch, state: FlowStateT, step: Step) -> None:
        """Make a guided step and record it."""
        raise NotImplementedError

    def unguided_step(self, batch: Batch, state: FlowStateT, step: Step) -> None:
        """Make a step of `base`: plain noise, no graph, no reward in the record."""
        velocity = self.velocity(batch, state, step)
        noise = batch.draw(len(state.x) // len(batch))
        if state.total is not None:
            state.total.add(step.sigma * noise, step.sigma)
        self.show(batch, state.x, velocity, step.t)
        state.x = advance(state.x, velocity, step, noise)
        batch.record(step.index, step.t)

    def finish(self, batch: Batch, state: FlowStateT, last: Step) -> None:
        """Make the last step, without noise or guidance, and finish the batch."""
        peaks = None if state.total is None else state.total.peaks()
        finish_flow(batch, self.model, state.x, last, self.velocity(batch, state, last), noise_peaks=peaks)

    def velocity(self, batch: Batch, state: FlowStateT, step: Step) -> Tensor:
        """Return the velocity at the latents of the state, (B K, *shape), which may be known already."""
        known = state.take_known()
        return velocities_of(batch, self.model, state.x, step.t) if known is None else known.output

    def guidance(self, batch: Batch, state: FlowStateT, step: Step) -> Guidance:
        """Return velocity, rewards and gradients there. See `flow_guidance`; they may be known already."""
        guidance = state.take_known() or flow_guidance(batch, self.model, state.x, step)
        self.show(batch, state.x, guidance.output, step.t)
        return guidance

    def show(self, batch: Batch, x: Tensor, velocity: Tensor, t: float) -> None:
        """Let the present step show the estimates x0_hat at latents x (B K, *shape), see `Batch.show`."""
        batch.show(decoder_of_estimates(self.model), partial(denoised, x, velocity, t))


def rewards_of(batch: Batch, decode: Callable[[Tensor], Tensor], x0: Tensor) -> list[float]:
    """Return the rewards of the decoded latents x0 (B K, *shape), in micro-batches."""
    with batch.time("reward"):
        rewards = [batch.rewards(decode(part), prompts) for part, prompts in batch.parts(x0)]
        return torch.cat(rewards).tolist()  # one transfer from the device


@dataclass(kw_only=True)
class GuidedFlow(FlowAlgorithm[FlowState]):
    """Algorithm of a sampler that guides one trajectory of each particle by the gradient."""

    state_type = FlowState

    def begin(self, batch: Batch) -> FlowState:
        """Return the first latents, and no noise yet."""
        state = super().begin(batch)
        state.total = TotalNoise.like(state.x)
        return state

    def take_step(
        self, state: FlowState, velocity: Tensor, step: Step, noise: Tensor, shift: Tensor | None = None
    ) -> None:
        """Move the latents by a step with this noise and shift (B, *shape), and add both to the total."""
        assert state.total is not None
        state.x, added = advance(state.x, velocity, step, noise), step.sigma * noise
        if shift is not None:
            state.x, added = state.x + shift, added + shift
        state.total.add(added, step.sigma)


def finish_flow(
    batch: Batch,
    model: FlowModel,
    x: Tensor,
    last: Step,
    velocity: Tensor,
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
        velocity: velocity at x.
        noise_peaks: peak of each particle's noise, see `TotalNoise`; None for an unguided sampler.
        fallbacks, ess: values of each particle's last record, see `StepRecord`.
    """
    x0 = mean(x, velocity, last)
    with batch.time("reward"):
        images = model.decode(x0)
        rewards = batch.rewards(images, batch.prompts)
    batch.record(last.index, last.t, rewards.tolist(), fallbacks=fallbacks, noise_peaks=noise_peaks, ess=ess)
    batch.finish(x0, images, rewards, x0)
