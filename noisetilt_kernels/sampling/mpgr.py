"""MPGR: the noise of a one-step model optimised toward the moments and power spectrum of noise (MPGR)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..checks import check_number
from . import regularizers
from .batch import Batch
from .gradients import Guidance, column_of, norm_of_each
from .optimize import Answer, OneStepAlgorithm
from .options import SamplerOptions
from .protocols import OneStepModel, Reward
from .registry import register_sampler
from .result import Result
from .stepwise import stepwise


@dataclass(kw_only=True)
class MPGR(OneStepAlgorithm):
    """Steps of `mpgr`."""

    name, nesterov = "mpgr", True

    weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("mpgr", "weight", self.weight, 0)

    def prepare(self, model: OneStepModel) -> None:
        """Keep the model, whose noise the regularizer must be able to divide."""
        super().prepare(model)
        regularizers.check_size("mpgr", tuple(model.shape), 2 * regularizers.BLOCK)

    def direction(self, batch: Batch, x: Tensor, guidance: Guidance) -> Tensor:
        """Return the gradient of the reward minus that of the regularizer, rescaled to the same norm."""
        permutations = batch.permutations(1, x[0].numel())
        gradient = regularizers.gradient_of(lambda x: regularizers.mpgr(x, permutations), x)
        scale = self.weight * norm_of_each(guidance.gradient) / norm_of_each(gradient).clamp(min=1e-30)
        return guidance.gradient - column_of(scale.to(x.dtype), x) * gradient


@register_sampler(
    kind="one-step",
    needs_gradient=True,
    algorithm=MPGR,
    nfe=lambda arguments: arguments["iterations"] + 1,
)
def mpgr(
    model: OneStepModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    iterations: int = 200,
    lr: float = 50.0,
    clip: float = 0.01,
    weight: float = 1.0,
    answer: Answer = "last",
    options: SamplerOptions | None = None,
) -> Result:
    """Ascend r(M(x)) - weight * c * R(x) with Nesterov's momentum of 0.9, for a one-step model M.

    R compares mean, root mean square and the spectrum of permuted x with those of noise
    (`regularizers.mpgr`); c rescales its gradient to the norm of the reward's. NFE per particle: iterations
    + 1. No code is published: iterations are those of the comparison in WGNC's paper, clip is reported by
    others, and lr * clip is that of `reno`.

    Args:
        model: one-step model M.
        reward: differentiable function of the images, to be increased.
        prompts: one prompt for each particle; a string is one particle.
        iterations: number of iterations, at least 0.
        lr: learning rate of the optimiser.
        clip: largest norm of the gradient that the optimiser gets.
        weight: norm of the regularizer's gradient, relative to that of the reward's.
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
        mpgr,
        model,
        reward,
        prompts,
        options=options,
        iterations=iterations,
        lr=lr,
        clip=clip,
        weight=weight,
        answer=answer,
    ).result()
