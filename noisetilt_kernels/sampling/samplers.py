"""Samplers of flows: base, NTRK, DPS, SVDD and best of n (DESIGN section 7; NoiseTilt section 3).

They all take (model, reward, prompts), with one particle for each prompt, and return a `Result`. NFE per particle of n
steps: base, ntrk and dps n, as the forward for the gradient gives the velocity as well; svdd 1 + K (n - 1), as the
velocity of the chosen candidate is that of the next step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..checks import check_integer, check_number, prompt_list
from .flow import DEFAULT_STEPS, State, sample_flow, velocity_of
from .gradients import cosines, flow_guidance
from .operators import operator_by_name
from .protocols import FlowModel, Reward, check_model
from .run import Batch, Result, Run, best_index
from .schedules import Schedule
from .steps import Step, advance, denoised, mean

DEFAULT_SCHEDULE = Schedule("linear")


def base(
    model: FlowModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    steps: int = DEFAULT_STEPS,
    schedule: str | Schedule = DEFAULT_SCHEDULE,
    run: Run | None = None,
) -> Result:
    """The flow as it is: the unguided reverse SDE (NoiseTilt eq. 4). The reward judges finished images only.

    Args:
        model: the flow.
        reward: what the images are judged by.
        prompts: one for each particle; a string is one particle.
        steps: at least 1.
        schedule: diffusion coefficient; `Schedule("constant", 0)` is the ODE.
        run: seed, micro-batches, callbacks; None is `Run()`.

    Raises:
        ValueError, TypeError: an argument out of its range, before any work; the model or the reward returns a wrong
            shape.
        NonFiniteError: a reward or latent is not finite.
    """

    def move(batch: Batch, step: Step, state: State) -> State:
        velocity = velocity_of(batch, model, state.x, step.t, batch.prompts)
        x = advance(state.x, velocity, step, batch.draw())
        batch.record(step.index, step.t)
        return State(x)

    return sample_flow("base", model, reward, prompts, steps, schedule, run or Run(), move)


def ntrk(
    model: FlowModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    rho: float = 0.3,
    operator: str = "w",
    steps: int = DEFAULT_STEPS,
    schedule: str | Schedule = DEFAULT_SCHEDULE,
    run: Run | None = None,
) -> Result:
    """The noise-tilted kernel, with noise sqrt(rho) W(grad r(x0_hat)) + sqrt(1 - rho) eps (NoiseTilt eq. 11, 12).

    With rho = 0 the latents are those of `base`, bit for bit.

    Args:
        rho: guidance strength in [0, 1]. With the operators "w", "wgnc" and "norm" the noise keeps its norm at every
            strength; the larger, the less of it is random.
        operator: what makes noise of the gradient: "w", "wgnc", "norm" or "identity".

    The other arguments, and what is raised, are those of `base`; also ValueError where the model or the reward has no
    gradient. A particle whose gradient is exactly zero gets plain noise at that step, and its record says so.
    """
    check_number("ntrk", "rho", rho, 0, 1)
    check_model("ntrk", model, FlowModel)
    whiten = operator_by_name("ntrk", operator, tuple(model.shape))

    def move(batch: Batch, step: Step, state: State) -> State:
        guidance = flow_guidance(batch, model, state.x, step)
        with batch.meter.time("whitening"):
            direction = whiten(guidance.gradient)
        noise = batch.draw()
        tilted = math.sqrt(rho) * direction + math.sqrt(1 - rho) * noise
        x = advance(state.x, guidance.output, step, torch.where(guidance.usable, tilted, noise))
        similarity = cosines(guidance, direction)
        batch.record(step.index, step.t, guidance.rewards, guidance.norms, similarity, guidance.fallbacks)
        return State(x)

    return sample_flow("ntrk", model, reward, prompts, steps, schedule, run or Run(), move)


def dps(
    model: FlowModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    strength: float | Callable[[float], float],
    steps: int = DEFAULT_STEPS,
    schedule: str | Schedule = DEFAULT_SCHEDULE,
    run: Run | None = None,
) -> Result:
    """The mean-shifted reverse kernel: lambda_t grad r(x0_hat) is added to the mean (NoiseTilt eq. 6).

    Args:
        strength: lambda_t, a number or a function of t; it scales the gradient as it is, so what is right depends on
            the reward. 0 gives the latents of `base`.

    The other arguments, and what is raised, are those of `ntrk`.
    """
    if not callable(strength):
        check_number("dps", "strength", strength, -math.inf)

    def move(batch: Batch, step: Step, state: State) -> State:
        guidance = flow_guidance(batch, model, state.x, step)
        scale = strength(step.t) if callable(strength) else strength
        x = advance(state.x, guidance.output, step, batch.draw())
        x = torch.where(guidance.usable, x + scale * guidance.gradient, x)
        batch.record(step.index, step.t, guidance.rewards, guidance.norms, fallbacks=guidance.fallbacks)
        return State(x)

    return sample_flow("dps", model, reward, prompts, steps, schedule, run or Run(), move)


def svdd(
    model: FlowModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    candidates: int = 4,
    steps: int = DEFAULT_STEPS,
    schedule: str | Schedule = DEFAULT_SCHEDULE,
    run: Run | None = None,
) -> Result:
    """Search: of K draws from the base kernel, each step keeps the one with the best r(x0_hat) (NoiseTilt eq. 8, 9).

    x0_hat is the candidate's own, at the time where the step ends. With K = 1 the latents are those of `base`.

    Args:
        candidates: K, at least 1. Their forwards go to the model in micro-batches as well, as do particles: as many at
            once as fit with all their candidates, at least one.

    The other arguments, and what is raised, are those of `base`. With `Run(non_finite="plain_noise")` a candidate
    whose reward is not finite is not chosen; where none is left, the first one, plain noise, is.
    """
    check_integer("svdd", "candidates", candidates, 1)

    def move(batch: Batch, step: Step, state: State) -> State:
        x, velocity = state
        if velocity is None:
            velocity = velocity_of(batch, model, x, step.t, batch.prompts)
        center = mean(x, velocity, step).repeat_interleave(candidates, dim=0)
        drawn = center + step.sigma * batch.draw(candidates)
        prompts = [prompt for prompt in batch.prompts for _ in range(candidates)]
        after, velocities, rewards = step.t - step.delta, [], []
        for start in range(0, len(drawn), batch.run.micro_batch):
            part = slice(start, start + batch.run.micro_batch)
            velocities.append(velocity_of(batch, model, drawn[part], after, prompts[part]))
            with batch.meter.time("reward"):
                images = model.decode(denoised(drawn[part], velocities[-1], after))
                rewards += batch.rewards(images, prompts[part]).tolist()

        kept: list[int] = []
        fallbacks: list[str | None] = []
        for index in range(len(batch)):
            own = rewards[index * candidates : (index + 1) * candidates]
            bad = sum(not math.isfinite(value) for value in own)
            fallbacks.append(
                batch.complain(step.index, index, f"non-finite reward of {bad} of {candidates} candidates")
                if bad
                else None
            )
            own = [value if math.isfinite(value) else math.nan for value in own]
            kept.append(index * candidates + best_index(own))
        batch.record(step.index, step.t, [rewards[index] for index in kept], fallbacks=fallbacks)
        return State(drawn[kept], torch.cat(velocities)[kept])

    return sample_flow("svdd", model, reward, prompts, steps, schedule, run or Run(), move, candidates)


def best_of_n(
    sampler: Callable[..., Result],
    model: Any,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    n: int,
    **options: Any,
) -> Result:
    """The best of n independent particles for every prompt, of any sampler: NTRK† is `best_of_n(ntrk, ..., n=20)`.

    Args:
        sampler: `base`, `ntrk`, `dps`, `svdd`, `wgnc`, or any function of this kind.
        n: particles for each prompt, at least 1. Those of the first prompt come first.
        options: the sampler's own.

    Returns:
        The sampler's result on all particles; `chosen` has for each prompt the index of its best.

    Raises:
        ValueError, TypeError: n is less than 1, or as of the sampler.
    """
    if not callable(sampler):
        raise TypeError(f"best_of_n: sampler must be a function such as ntrk, got {sampler!r}")
    check_integer("best_of_n", "n", n, 1)
    every = [prompt for prompt in prompt_list("best_of_n", prompts) for _ in range(n)]
    result = sampler(model, reward, every, **options)
    rewards = result.rewards.tolist()
    chosen = tuple(start + best_index(rewards[start : start + n]) for start in range(0, len(every), n))
    return replace(result, method=f"best of {n} {result.method}", chosen=chosen)
