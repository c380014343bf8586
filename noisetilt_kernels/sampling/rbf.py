"""RBF, search that moves unused draws of a step to the next one (rollover budget forcing, for flows)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..checks import check_integer
from .flow import DEFAULT_SCHEDULE, DEFAULT_START, DEFAULT_STEPS, check_flow, finish_flow, plan_flow
from .loop import Batch, start_particles
from .options import SamplerOptions
from .protocols import FlowModel, Reward, decoder_of_estimates
from .registry import register_sampler
from .result import Result
from .schedules import Schedule
from .starts import Start, as_start, forwards_of_start
from .steps import denoised, mean
from .velocity import velocity_of


def check_rbf(*, budget: int, starts: int, steps: int, schedule: str | Schedule, start: str | Start) -> None:
    """Raise ValueError or TypeError for an argument of `rbf` out of its range."""
    check_integer("rbf", "starts", starts, 1)
    check_flow("rbf", steps, schedule, start)
    check_integer("rbf", "budget", budget, 1)
    least = starts * (1 + as_start("rbf", start).iterations) + steps - 1
    if budget < least:
        raise ValueError(
            f"rbf: budget must be at least {least}, for {starts} starts and one draw at each of "
            f"{steps - 1} steps, got {budget}"
        )


def nfe_of_rbf(arguments: Mapping[str, Any]) -> int:
    """Return the number of function evaluations of a particle: the whole budget, if there is a noisy step."""
    if arguments["steps"] > 1:
        return int(arguments["budget"])
    return int(arguments["starts"] * (1 + forwards_of_start(arguments)))


@register_sampler(kind="flow", needs_gradient=False, check=check_rbf, nfe=nfe_of_rbf, alone=True)
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
        start: start point x_1, "noise" or "pcnl", or a `Start` such as `PCNL`. The forwards of its chains
            are part of the budget.
        options: seed, micro-batches, callbacks; None means `SamplerOptions()`.

    Raises:
        ValueError, TypeError: an argument is out of its range (raised before any work), or the model or the
            reward returns a wrong shape.
        NonFiniteError: a reward or latent is not finite.
    """
    check_rbf(budget=budget, starts=starts, steps=steps, schedule=schedule, start=start)
    start = as_start("rbf", start)
    chains = starts * start.iterations
    plan = [
        replace(step, index=chains + n) for n, step in enumerate(plan_flow("rbf", model, steps, schedule))
    ]
    quota = (budget - starts - chains) // max(1, steps - 1)
    with start_particles("rbf", model, reward, prompts, options, chains + steps, alone=True) as particles:
        for batch in particles.batches():
            level = Level(batch, model, plan[0].t, plan[0].index)
            for chain in range(1, starts + 1):
                level.draw(start(batch, model, replace(plan[0], index=chain * start.iterations)))
            highest, left, allowed = level.reward, budget - starts - chains, quota
            for step in plan[:-1]:
                last = step is plan[-2]
                allowed = left if last else allowed
                center = mean(level.x, level.velocity, step)
                level = Level(batch, model, step.t - step.delta, step.index)
                while level.draws < allowed:
                    level.draw(center + step.sigma * batch.draw())
                    if level.reward > highest and not last:
                        break
                highest = max(highest, level.reward)
                left -= level.draws
                allowed = quota + allowed - level.draws
                batch.record(step.index, step.t, [level.reward], fallbacks=[level.fallback])
            finish_flow(batch, model, level.x, plan[-1], level.velocity)
        return particles.result()


class Level:
    """Draws of one particle at one time, of which the best is kept; the first one wins a tie.

    Attributes:
        x: latents of the best draw, (1, *shape).
        velocity: velocity there.
        reward: r(x0_hat) there; -inf if no reward is finite.
        draws: number of draws.
        fallback: reason if a reward is not finite, or None.
    """

    x: Tensor
    velocity: Tensor

    def __init__(self, batch: Batch, model: FlowModel, t: float, step: int) -> None:
        self._batch, self._model, self._t, self._step = batch, model, t, step
        self.reward, self.draws, self._bad = -math.inf, 0, 0

    def draw(self, x: Tensor) -> None:
        """Evaluate latents (1, *shape) and keep them if they are the best, with one forward.

        Raises:
            NonFiniteError: the reward is not finite and `options.non_finite` is "raise".
        """
        batch, model = self._batch, self._model
        velocity = velocity_of(batch, model, x, self._t, batch.prompts)
        with batch.time("reward"):
            images = decoder_of_estimates(model)(denoised(x, velocity, self._t))
            reward = float(batch.rewards(images, batch.prompts))
        if not math.isfinite(reward):
            self._bad += 1
            batch.fall_back(self._step, 0, "non-finite reward")
            reward = -math.inf
        if reward > self.reward or self.draws == 0:
            self.x, self.velocity, self.reward = x, velocity, reward
        self.draws += 1

    @property
    def fallback(self) -> str | None:
        """Reason why draws were not compared, or None."""
        return f"non-finite reward of {self._bad} of {self.draws} draws" if self._bad else None
