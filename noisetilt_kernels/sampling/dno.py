"""DNO: all noise of a trajectory of a flow, optimised through all of its steps (DNO, for flows)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_integer, check_number
from . import regularizers
from .flow import DEFAULT_SCHEDULE, DEFAULT_STEPS, check_flow, plan_flow
from .gradients import Guidance, check_graph, guidance_through
from .loop import Batch, start_particles
from .optimize import Answer, check_optimizer, finished, optimize
from .options import SamplerOptions
from .protocols import FlowModel, Reward, decoder_of_estimates, preview_of
from .registry import register_sampler
from .result import Result
from .schedules import Schedule
from .steps import Step, advance, mean
from .typicality import TotalNoise
from .velocity import velocity_of


def check_dno(
    *,
    iterations: int,
    lr: float,
    clip: float,
    weight: float,
    shuffles: int,
    answer: Answer,
    steps: int,
    schedule: str | Schedule,
) -> None:
    """Raise ValueError or TypeError for an argument of `dno` out of its range."""
    check_optimizer("dno", iterations, lr, clip, answer)
    check_number("dno", "weight", weight, 0)
    check_integer("dno", "shuffles", shuffles, 0)
    check_flow("dno", steps, schedule)


@register_sampler(
    kind="flow",
    needs_gradient=True,
    check=check_dno,
    nfe=lambda arguments: (arguments["iterations"] + 1) * arguments["steps"],
)
def dno(
    model: FlowModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    iterations: int = 19,
    lr: float = 0.01,
    clip: float = 1.0,
    weight: float = 0.0,
    shuffles: int = 100,
    answer: Answer = "best",
    steps: int = DEFAULT_STEPS,
    schedule: str | Schedule = DEFAULT_SCHEDULE,
    options: SamplerOptions | None = None,
) -> Result:
    """Ascend r(x_0) - weight * R(z) with Adam in all noise z: the start x_1 and the noise of the steps.

    x_0 is the image that `base` makes of this noise; with iterations = 0 or lr = 0 the latents are those of
    `base`, bit for bit. R is `regularizers.prno` of all noise together. The gradient flows through all steps.
    Each forward is checkpointed: the memory is that of one step, and the backward makes every forward a
    second time. NFE per particle: (iterations + 1) * steps; the forwards of the backward are not counted.
    Unlike the released code, the optimiser has no weight decay, which pulls noise towards 0.

    Args:
        model: flow to sample from.
        reward: differentiable function of the images, to be increased.
        prompts: one prompt for each particle; a string is one particle.
        iterations: number of iterations, at least 0.
        lr: learning rate of the optimiser.
        clip: largest norm of the gradient that the optimiser gets.
        weight: weight of the regularizer. The released code has 0 by default; its README uses 1.
        shuffles: number of random permutations in the regularizer, at least 0.
        answer: iterate that is returned, "last" or "best": the one with the highest reward.
        steps: number of steps, at least 1.
        schedule: diffusion coefficient g(t). Pass a name of `Schedule` or a `Schedule`; scale 0 is the ODE.
        options: seed, micro-batches, callbacks; None means `SamplerOptions()`. With
            `non_finite="plain_noise"` an iteration without a usable gradient leaves the noise unchanged.

    Raises:
        ValueError, TypeError: an argument is out of its range (raised before any work), or the model or the
            reward returns a wrong shape or has no gradient.
        NonFiniteError: a reward, gradient or latent is not finite.
    """
    check_dno(
        iterations=iterations,
        lr=lr,
        clip=clip,
        weight=weight,
        shuffles=shuffles,
        answer=answer,
        steps=steps,
        schedule=schedule,
    )
    plan = plan_flow("dno", model, steps, schedule)
    decode = decoder_of_estimates(model)
    if weight:
        regularizers.check_size("dno", (steps, *model.shape), regularizers.ROW)

    with start_particles("dno", model, reward, prompts, options, iterations + 1) as particles:
        for batch in particles.batches():

            def evaluate(noise: Tensor, iteration: int, batch: Batch = batch) -> Guidance:
                return guidance_through(
                    batch, lambda noise: trajectory(batch, model, noise, plan), decode, noise, iteration
                )

            def judge(noise: Tensor, batch: Batch = batch) -> tuple[Tensor, Tensor]:
                x0 = trajectory(batch, model, noise, plan)
                with batch.time("reward"):
                    return x0, batch.rewards(decode(x0), batch.prompts)

            found = optimize(
                batch,
                batch.draw(steps).unflatten(0, (-1, steps)),
                evaluate,
                judge,
                iterations=iterations,
                optimizer=lambda z: torch.optim.Adam(z, lr=lr, maximize=True),
                clip=clip,
                direction=regularizers.within_bounds(weight, shuffles),
                answer=answer,
            )
            total = TotalNoise(found.output)
            total.add(found.noise[:, 0], 1.0)
            for step in plan[:-1]:
                total.add(step.sigma * found.noise[:, step.index + 1], step.sigma)
            images, rewards = finished(batch, model.decode, found, preview_of(model) is not None)
            batch.record(iterations, 1.0, rewards.tolist(), noise_peaks=total.peaks())
            batch.finish(found.output, images, rewards)
        return particles.result()


def trajectory(batch: Batch, model: FlowModel, noise: Tensor, plan: Sequence[Step]) -> Tensor:
    """Return x_0 of the start and the noise of the steps, (B, n, *shape), with a graph if it is enabled."""
    x = plan[0].start * noise[:, 0]
    for step in plan:
        with_graph = torch.is_grad_enabled()
        velocity = velocity_of(batch, model, x, step.t, batch.prompts, checkpointed=with_graph)
        if with_graph:
            check_graph(batch, velocity)
        last = step is plan[-1]
        x = mean(x, velocity, step) if last else advance(x, velocity, step, noise[:, step.index + 1])
    return x
