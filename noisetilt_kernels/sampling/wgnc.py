"""WGNC: the noise of a one-step model optimised under white Gaussian noise constraints (WGNC algorithm 1)."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ..checks import check_choice
from .gradients import Guidance
from .loop import Batch
from .operators import OPERATORS, operator_by_name
from .optimize import Answer, check_optimizer, optimize_one_step
from .options import SamplerOptions
from .protocols import OneStepModel, Reward, check_model
from .registry import register_sampler
from .result import Result

Projected = Literal["both", "gradient", "latent", "neither"]
"""Object of the projection of `wgnc`: gradient and noise, one of them, or neither."""


def check_wgnc(
    *, iterations: int, lr: float, clip: float, operator: str, project: Projected, answer: Answer
) -> None:
    """Raise ValueError or TypeError for an argument of `wgnc` out of its range."""
    check_optimizer("wgnc", iterations, lr, clip, answer)
    check_choice("wgnc", "project", project, get_args(Projected))
    check_choice("wgnc", "operator", operator, OPERATORS)


@register_sampler(
    kind="one-step",
    needs_gradient=True,
    check=check_wgnc,
    nfe=lambda arguments: arguments["iterations"] + 1,
)
def wgnc(
    model: OneStepModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    iterations: int = 200,
    lr: float = 0.02,
    clip: float = 0.03,
    operator: str = "wgnc",
    project: Projected = "both",
    answer: Answer = "last",
    options: SamplerOptions | None = None,
) -> Result:
    """Repeat x <- Adam(x, P(grad r(M(x)))), x <- P(x) for a one-step model M (DESIGN section 7).

    NFE per particle: iterations + 1. The last forward makes the finished image.

    Args:
        model: one-step model M.
        reward: differentiable function of the images, to be increased.
        prompts: one prompt for each particle; a string is one particle.
        iterations: number of iterations, at least 0. The authors use 200 for FLUX-schnell and 50 for
            SDXL-Turbo.
        lr: learning rate of Adam. The authors use 0.02 for FLUX-schnell and 0.1 for SDXL-Turbo.
        clip: largest norm of P(grad) that Adam gets. P(grad) has norm about sqrt(N) for every
            gradient, so clipping scales it; the scale matters only relative to Adam's epsilon.
        operator: projection P: "wgnc", "w", "2os+tiles", "2os", "norm" or "identity".
        project: what P is applied to, "both", "gradient", "latent" or "neither".
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
    check_wgnc(iterations=iterations, lr=lr, clip=clip, operator=operator, project=project, answer=answer)
    check_model("wgnc", model, OneStepModel)
    projection = operator_by_name("wgnc", operator, tuple(model.shape))

    def direction(batch: Batch, x: Tensor, guidance: Guidance) -> Tensor:
        return projection(guidance.gradient) if project in ("both", "gradient") else guidance.gradient

    return optimize_one_step(
        "wgnc",
        model,
        reward,
        prompts,
        options,
        iterations=iterations,
        optimizer=lambda x: torch.optim.Adam(x, lr=lr, maximize=True),
        clip=clip,
        direction=direction,
        project=projection if project in ("both", "latent") else None,
        answer=answer,
    )
