"""WGNC: the noise of a one-step model optimised under white Gaussian noise constraints (WGNC algorithm 1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from ..checks import check_choice
from .batch import Batch
from .gradients import Guidance
from .operators import Operator, check_operator, operator_by_name
from .optimize import Answer, OneStepAlgorithm
from .options import SamplerOptions
from .protocols import OneStepModel, Reward
from .registry import register_sampler
from .result import Result
from .stepwise import stepwise

Projected = Literal["both", "gradient", "latent", "neither"]
"""Object of the projection of `wgnc`: gradient and noise, one of them, or neither."""


@dataclass(kw_only=True)
class WGNC(OneStepAlgorithm):
    """Steps of `wgnc`."""

    name = "wgnc"

    operator: str | Operator
    project: Projected

    def __post_init__(self) -> None:
        super().__post_init__()
        check_operator("wgnc", self.operator)
        check_choice("wgnc", "project", self.project, get_args(Projected))

    def prepare(self, model: OneStepModel) -> None:
        """Keep the model and the operator."""
        super().prepare(model)
        self._projection = operator_by_name("wgnc", self.operator, tuple(model.shape))

    def direction(self, batch: Batch, x: Tensor, guidance: Guidance) -> Tensor:
        """Return the gradient, projected if it is to be."""
        gradient = guidance.gradient
        return self._projection(gradient) if self.project in ("both", "gradient") else gradient

    def projected(self, x: Tensor) -> Tensor:
        """Return the noise, projected if it is to be."""
        return self._projection(x) if self.project in ("both", "latent") else x


@register_sampler(
    kind="one-step",
    needs_gradient=True,
    algorithm=WGNC,
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
    operator: str | Operator = "wgnc",
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
        operator: projection P: "wgnc", "w", "2os+tiles", "2os", "norm" or "identity". Pass a name, or a
            function (B, *shape) -> the same shape.
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
    return stepwise(
        wgnc,
        model,
        reward,
        prompts,
        options=options,
        iterations=iterations,
        lr=lr,
        clip=clip,
        operator=operator,
        project=project,
        answer=answer,
    ).result()
