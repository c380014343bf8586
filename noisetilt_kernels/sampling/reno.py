"""ReNO: the noise of a one-step model optimised with its norm held near that of noise (ReNO section 3)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_number
from .gradients import Guidance
from .loop import Batch
from .optimize import Answer, check_optimizer, optimize_one_step
from .options import SamplerOptions
from .protocols import OneStepModel, Reward
from .registry import register_sampler
from .regularizers import gradient_of, norm
from .result import Result


def check_reno(*, iterations: int, lr: float, clip: float, weight: float, answer: Answer) -> None:
    """Raise ValueError or TypeError for an argument of `reno` out of its range."""
    check_optimizer("reno", iterations, lr, clip, answer)
    check_number("reno", "weight", weight, 0)


@register_sampler(
    kind="one-step",
    needs_gradient=True,
    check=check_reno,
    nfe=lambda arguments: arguments["iterations"] + 1,
)
def reno(
    model: OneStepModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    iterations: int = 49,
    lr: float = 5.0,
    clip: float = 0.1,
    weight: float = 0.01,
    answer: Answer = "best",
    options: SamplerOptions | None = None,
) -> Result:
    """Ascend r(M(x)) - weight * R(x) with Nesterov's momentum of 0.9, for a one-step model M.

    R is the negative log-density of the norm of noise (`regularizers.norm`). NFE per particle: iterations
    + 1. The defaults are those of the released code, whose 50 iterations make 49 moves.

    Args:
        model: one-step model M.
        reward: differentiable function of the images, to be increased.
        prompts: one prompt for each particle; a string is one particle.
        iterations: number of iterations, at least 0.
        lr: learning rate of the optimiser.
        clip: largest norm of the gradient that the optimiser gets.
        weight: weight of the regularizer.
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
    check_reno(iterations=iterations, lr=lr, clip=clip, weight=weight, answer=answer)

    def direction(batch: Batch, x: Tensor, guidance: Guidance) -> Tensor:
        return guidance.gradient - weight * gradient_of(norm, x)

    return optimize_one_step(
        "reno",
        model,
        reward,
        prompts,
        options,
        iterations=iterations,
        optimizer=lambda x: torch.optim.SGD(x, lr=lr, momentum=0.9, nesterov=True, maximize=True),
        clip=clip,
        direction=direction,
        answer=answer,
    )
