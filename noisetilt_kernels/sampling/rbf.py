"""RBF, search that moves unused draws of a step to the next one (rollover budget forcing, for flows)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..checks import check_integer
from .batch import Batch
from .flow import (
    DEFAULT_SCHEDULE,
    DEFAULT_START,
    DEFAULT_STEPS,
    FlowAlgorithm,
    FlowState,
)
from .options import SamplerOptions
from .protocols import FlowModel, Reward, decoder_of_estimates
from .registry import register_sampler
from .result import Result
from .schedules import Schedule
from .starts import Point, Start, forwards_of_start
from .steps import Step, denoised, mean
from .stepwise import stepwise
from .velocity import velocities_of


@dataclass
class RBFState(FlowState):
    """State of `rbf`: its latents are the best of the draws at one time, of which the first one wins a tie.

    Args:
        velocity: velocity at the latents; None before the first draw.
        reward: r(x0_hat) there; -inf if no reward is finite.
        draws: number of draws at this time.
        bad: number of them whose reward is not finite.
        highest: highest reward of the steps before.
        left: number of function evaluations that are left.
        allowed: number of draws that the next step may make.
        chain: chain that runs at present, or None.
    """

    velocity: Tensor | None = None
    reward: float = -math.inf
    draws: int = 0
    bad: int = 0
    highest: float = -math.inf
    left: int = 0
    allowed: int = 0
    chain: Point | None = None

    def put(self, x: Tensor) -> None:
        """Replace the latents, or those of the chain that runs. Nothing is known there."""
        if self.chain is not None:
            self.chain.put(x)
            return
        super().put(x)
        self.velocity = None


@dataclass(kw_only=True)
class RBF(FlowAlgorithm[RBFState]):
    """Steps of `rbf`."""

    name, state_type = "rbf", RBFState
    fixed = (*FlowAlgorithm.fixed, "budget", "starts")

    budget: int
    starts: int

    def __post_init__(self) -> None:
        check_integer("rbf", "starts", self.starts, 1)
        super().__post_init__()
        check_integer("rbf", "budget", self.budget, 1)
        steps = self.steps - self.chain.left_out(self.steps)
        least = self.starts * (1 + self.chain.iterations) + steps - 1
        if self.budget < least:
            raise ValueError(
                f"rbf: budget must be at least {least}, for {self.starts} starts and one draw at each of "
                f"{steps - 1} steps, got {self.budget}"
            )

    @property
    def chains(self) -> int:
        """Number of iterations of all chains."""
        return self.starts * self.chain.iterations

    @property
    def quota(self) -> int:
        """Number of draws of a step, without those that roll over to it."""
        return (self.budget - self.starts - self.chains) // max(1, len(self.plan) - 1)

    @property
    def records(self) -> int:
        """Number of steps, with those of all chains."""
        return self.chains + len(self.plan)

    def prepare(self, model: FlowModel) -> None:
        """Keep the model, and plan the steps, numbered after those of all chains."""
        super().prepare(model)
        self.plan = [replace(step, index=self.chains + number) for number, step in enumerate(self.plan)]

    def begin(self, batch: Batch) -> RBFState:
        """Return the best start point, or the beginning of the first chain."""
        chain = self._begin_chain(batch, 1)
        left = self.budget - self.starts - self.chains
        state = RBFState(chain.x, left=left, allowed=self.quota, chain=chain)
        if not self.chains:
            state.chain = None
            self._draw(batch, state, chain, self.plan[0].t, 0)
            for number in range(2, self.starts + 1):
                self._draw(batch, state, self._begin_chain(batch, number), self.plan[0].t, 0)
        return state

    def step(self, batch: Batch, state: RBFState, index: int) -> None:
        """Make an iteration of a chain, a step of the search, or the last step."""
        if index < self.chains:
            self._move_chain(batch, state, index)
        elif index < self.records - 1:
            self.guided_step(batch, state, self.plan[index - self.chains])
        else:
            self.finish(batch, state, self.plan[-1])

    def guided_step(self, batch: Batch, state: RBFState, step: Step) -> None:
        """Draw until a reward is higher than all before, or all allowed draws are made."""
        last = step is self.plan[-2]
        allowed = state.left if last else state.allowed
        center = mean(state.x, self.velocity(batch, state, step), step)
        state.highest = max(state.highest, state.reward)
        state.reward, state.draws, state.bad = -math.inf, 0, 0
        while state.draws < allowed:
            drawn = Point(center + step.sigma * batch.draw())
            self._draw(batch, state, drawn, step.t - step.delta, step.index)
            if state.reward > state.highest and not last:
                break
        state.left -= state.draws
        state.allowed = self.quota + allowed - state.draws
        reason = f"non-finite reward of {state.bad} of {state.draws} draws" if state.bad else None
        batch.record(step.index, step.t, [state.reward], fallbacks=[reason])

    def velocity(self, batch: Batch, state: RBFState, step: Step) -> Tensor:
        """Return the velocity at the best draw, or at latents that were put in its place."""
        return super().velocity(batch, state, step) if state.velocity is None else state.velocity

    def _begin_chain(self, batch: Batch, number: int) -> Point:
        """Return the beginning of a chain, numbered from 1."""
        return self.chain.begin(
            batch, self.model, replace(self.plan[0], index=number * self.chain.iterations)
        )

    def _move_chain(self, batch: Batch, state: RBFState, index: int) -> None:
        number, iteration = divmod(index, self.chain.iterations)
        if number > 0 and iteration == 0:
            state.chain = self._begin_chain(batch, number + 1)
        assert state.chain is not None
        self.chain.move(batch, self.model, replace(self.plan[0], index=index), state.chain)
        batch.latents = state.chain.x
        if iteration == self.chain.iterations - 1:
            self._draw(batch, state, state.chain, self.plan[0].t, self.plan[0].index)
            if index == self.chains - 1:
                state.chain = None

    def _draw(self, batch: Batch, state: RBFState, drawn: Point, t: float, index: int) -> None:
        """Evaluate latents (1, *shape) at time t with one forward, and keep them if they are the best.

        Raises:
            NonFiniteError: the reward is not finite and `options.non_finite` is "raise".
        """
        known = drawn.take_known()
        velocity = velocities_of(batch, self.model, drawn.x, t) if known is None else known.output
        decode = decoder_of_estimates(self.model)
        with batch.time("reward"):
            reward = float(batch.rewards(decode(denoised(drawn.x, velocity, t)), batch.prompts))
        if not math.isfinite(reward):
            state.bad += 1
            batch.fall_back(index, 0, "non-finite reward")
            reward = -math.inf
        if reward > state.reward or state.draws == 0:
            state.x, state.velocity, state.reward = drawn.x, velocity, reward
            self.show(batch, drawn.x, velocity, t)
        state.draws += 1


def nfe_of_rbf(arguments: Mapping[str, Any]) -> int:
    """Return the number of function evaluations of a particle: the whole budget, if there is a noisy step."""
    if arguments["steps"] > 1:
        return int(arguments["budget"])
    return int(arguments["starts"] * (1 + forwards_of_start(arguments)))


@register_sampler(kind="flow", needs_gradient=False, algorithm=RBF, nfe=nfe_of_rbf, alone=True)
def rbf(
    model: FlowModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    budget: int = 500,
    starts: int = 20,
    steps: int = DEFAULT_STEPS,
    schedule: str | Schedule = DEFAULT_SCHEDULE,
    start: str | Start = DEFAULT_START,
    options: SamplerOptions | None = None,
) -> Result:
    """Draw candidates one at a time and go on from the first that raises the highest r(x0_hat) so far.

    The particle starts at the best of several start points. Each step has an equal quota of draws. A draw
    with a higher reward than any before ends the step, and the unused draws roll over to the next step. Else
    the step ends with its best draw when its draws are used up. The last step with noise uses all draws that
    are left, and its best one is finished. So the NFE per particle is the budget, exactly.

    Particles run one after another with one batch entry, because each draw depends on the reward of the one
    before, and particles are at different times. The quota is (budget - starts) // (steps - 1): the released
    code divides by the number of steps, of which the last one has no noise to draw. With starts = 1 and
    budget = steps the latents are those of `base`, bit for bit.

    With `SamplerOptions(non_finite="plain_noise")` a draw with a non-finite reward raises nothing and is not
    chosen. If no draw is left, the first one is taken.

    Args:
        model: flow to sample from.
        reward: function that judges the images.
        prompts: one prompt for each particle; a string is one particle.
        budget: number of function evaluations of a particle, at least that of one draw at each step.
        starts: number of start points, at least 1.
        steps: number of steps, at least 1.
        schedule: diffusion coefficient g(t). Pass a name of `Schedule` or a `Schedule`; scale 0 is the ODE.
        start: start point x_1, "noise" or "pcnl", or a `Start`: `PCNL` or `FromImage`. The forwards of its
            chains are part of the budget.
        options: seed, micro-batches, callbacks; None means `SamplerOptions()`.

    Raises:
        ValueError, TypeError: an argument is out of its range (raised before any work), or the model or the
            reward returns a wrong shape.
        NonFiniteError: a reward or latent is not finite.
    """
    return stepwise(
        rbf,
        model,
        reward,
        prompts,
        options=options,
        budget=budget,
        starts=starts,
        steps=steps,
        schedule=schedule,
        start=start,
    ).result()
