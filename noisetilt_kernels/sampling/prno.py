"""PRNO: the noise of a one-step model optimised under concentration bounds (DNO section 4)."""

from collections.abc import Sequence

import torch

from ..checks import check_integer, check_number
from . import regularizers
from .optimize import Answer, check_optimizer, optimize_one_step
from .options import SamplerOptions
from .protocols import OneStepModel, Reward, check_model
from .registry import register_sampler
from .result import Result


def check_prno(
    *, iterations: int, lr: float, clip: float, weight: float, shuffles: int, answer: Answer
) -> None:
    """Raise ValueError or TypeError for an argument of `prno` out of its range."""
    check_optimizer("prno", iterations, lr, clip, answer)
    check_number("prno", "weight", weight, 0)
    check_integer("prno", "shuffles", shuffles, 0)


@register_sampler(
    kind="one-step",
    needs_gradient=True,
    check=check_prno,
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
    check_prno(iterations=iterations, lr=lr, clip=clip, weight=weight, shuffles=shuffles, answer=answer)

    check_model("prno", model, OneStepModel)
    regularizers.check_size("prno", tuple(model.shape), regularizers.ROW)
    return optimize_one_step(
        "prno",
        model,
        reward,
        prompts,
        options,
        iterations=iterations,
        optimizer=lambda x: torch.optim.Adam(x, lr=lr, maximize=True),
        clip=clip,
        direction=regularizers.within_bounds(weight, shuffles),
        answer=answer,
    )
