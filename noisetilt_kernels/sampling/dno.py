"""DNO: all noise of a trajectory of a flow, optimised through all of its steps (DNO, for flows)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import check_integer, check_number
from . import regularizers
from .batch import Batch
from .flow import DEFAULT_SCHEDULE, DEFAULT_STEPS, check_flow, plain_plan, plan_flow
from .gradients import Guidance, check_graph, guidance_through
from .optimize import Answer, Evaluated, NoiseAlgorithm, NoiseState, finished
from .options import SamplerOptions
from .protocols import FlowModel, Reward, decoder_of_estimates, preview_of
from .registry import register_sampler
from .result import Result
from .schedules import Schedule
from .steps import Step, advance, mean
from .stepwise import stepwise
from .typicality import TotalNoise
from .velocity import velocity_of


@dataclass(kw_only=True)
class DNO(NoiseAlgorithm):
    """Steps of `dno`. The noise of a particle is that of all steps, (n, *shape)."""

    name = "dno"
    fixed = (*NoiseAlgorithm.fixed, "steps", "schedule")

    weight: float
    shuffles: int
    steps: int
    schedule: str | Schedule

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("dno", "weight", self.weight, 0)
        check_integer("dno", "shuffles", self.shuffles, 0)
        check_flow("dno", self.steps, self.schedule)

    def prepare(self, model: FlowModel) -> None:
        """Keep the model and plan the steps of a trajectory."""
        self._model, self._decode = model, decoder_of_estimates(model)
        self._plan = plan_flow("dno", model, self.steps, self.schedule)
        if self.weight:
            regularizers.check_size("dno", (self.steps, *model.shape), regularizers.ROW)

    @property
    def identity(self) -> dict[str, Any]:
        """Iterations and the steps of a trajectory."""
        return {**super().identity, "plan": plain_plan(self._plan)}

    def begin(self, batch: Batch) -> NoiseState:
        """Return the first noise of all steps, (B, n, *shape)."""
        first, others = batch.draw(), batch.draw(self.steps - 1)
        return NoiseState(torch.cat([first[:, None], others.unflatten(0, (len(batch), -1))], dim=1))

    def evaluate(self, batch: Batch, noise: Tensor, iteration: int) -> Guidance:
        """Return the gradient of the rewards in all noise."""
        return guidance_through(
            batch,
            lambda noise: trajectory(batch, self._model, noise, self._plan),
            self._decode,
            noise,
            iteration,
        )

    def judge(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_0 and rewards of noise."""
        x0 = trajectory(batch, self._model, noise, self._plan)
        with batch.time("reward"):
            return x0, batch.rewards(self._decode(x0), batch.prompts)

    def direction(self, batch: Batch, x: Tensor, guidance: Guidance) -> Tensor:
        """Return the gradient of the reward minus that of the regularizer."""
        return regularizers.within_bounds(batch, x, guidance.gradient, self.weight, self.shuffles)

    def show(self, batch: Batch, output: Tensor) -> None:
        """Let the present step show x_0."""
        batch.show(self._decode, lambda: output)

    def finish(self, batch: Batch, found: Evaluated) -> None:
        """Record the answer and finish the batch."""
        total = TotalNoise.like(found.output)
        total.add(found.noise[:, 0], 1.0)
        for step in self._plan[:-1]:
            total.add(step.sigma * found.noise[:, step.index + 1], step.sigma)
        previewed = preview_of(self._model) is not None
        images, rewards = finished(batch, self._model.decode, found, previewed)
        batch.record(self.iterations, 1.0, rewards.tolist(), noise_peaks=total.peaks())
        batch.finish(found.output, images, rewards, found.output)


@register_sampler(
    kind="flow",
    needs_gradient=True,
    algorithm=DNO,
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
    return stepwise(
        dno,
        model,
        reward,
        prompts,
        options=options,
        iterations=iterations,
        lr=lr,
        clip=clip,
        weight=weight,
        shuffles=shuffles,
        answer=answer,
        steps=steps,
        schedule=schedule,
    ).result()


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
