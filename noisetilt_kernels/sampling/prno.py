"""PRNO: the noise of a one-step model optimised under concentration bounds (DNO section 4)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..checks import check_integer, check_number
from . import regularizers
from .batch import Batch
from .gradients import Guidance
from .optimize import Answer, OneStepAlgorithm
from .options import SamplerOptions
from .protocols import OneStepModel, Reward
from .registry import register_sampler
from .result import Result
from .stepwise import stepwise


@dataclass(kw_only=True)
class PRNO(OneStepAlgorithm):
    """Steps of `prno`."""

    name = "prno"

    weight: float
    shuffles: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("prno", "weight", self.weight, 0)
        check_integer("prno", "shuffles", self.shuffles, 0)

    def prepare(self, model: OneStepModel) -> None:
        """Keep the model, whose noise the regularizer must be able to divide."""
        super().prepare(model)
        regularizers.check_size("prno", tuple(model.shape), regularizers.ROW)

    def direction(self, batch: Batch, x: Tensor, guidance: Guidance) -> Tensor:
        """Return the gradient of the reward minus that of the regularizer."""
        return regularizers.within_bounds(batch, x, guidance.gradient, self.weight, self.shuffles)


@register_sampler(
    kind="one-step",
    needs_gradient=True,
    algorithm=PRNO,
    nfe=lambda arguments: arguments["iterations"] + 1,
)
def prno(
    model: OneStepModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    iterations: int = 100,
    lr: float = 0.01,
    clip: float = 1.0,
    weight: float = 1.0,
    shuffles: int = 100,
    answer: Answer = "best",
    options: SamplerOptions | None = None,
) -> Result:
    """Ascend r(M(x)) - weight * R(x) with Adam, for a one-step model M.

    R is minus the log of concentration bounds of mean and covariance (`regularizers.prno`). It is the
    regularizer of DNO for the first noise alone; `dno` optimises all noise of a flow. NFE per particle:
    iterations + 1. Unlike the released code, the optimiser has no weight decay, which pulls noise towards 0.

    Args:
        model: one-step model M.
        reward: differentiable function of the images, to be increased.
        prompts: one prompt for each particle; a string is one particle.
        iterations: number of iterations, at least 0.
        lr: learning rate of the optimiser.
        clip: largest norm of the gradient that the optimiser gets.
        weight: weight of the regularizer.
        shuffles: number of random permutations in the regularizer, at least 0.
        answer: iterate that is returned, "last" or "best": the one with the highest reward.
        options: seed, micro-batches, callbacks; None means `SamplerOptions()`. With
            `non_finite="plain_noise"` an iteration without a usable gradient leaves the latent unchanged.

    Returns:
        Result with the optimised noise as latents. `model.generate` makes the images from it.

    Raises:
        ValueError, TypeError: an argument is out of its range (raised before any work), or the model or the
            reward returns a wrong shape or has no gradient.
        NonFiniteError: a reward, gradient or latent is not finite.
    """
    return stepwise(
        prno,
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
    ).result()
