"""ReNO: the noise of a one-step model optimised with its norm held near that of noise (ReNO section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..checks import check_number
from .batch import Batch
from .gradients import Guidance
from .optimize import Answer, OneStepAlgorithm
from .options import SamplerOptions
from .protocols import OneStepModel, Reward
from .registry import register_sampler
from .regularizers import gradient_of, norm
from .result import Result
from .stepwise import stepwise


@dataclass(kw_only=True)
class ReNO(OneStepAlgorithm):
    """Steps of `reno`."""

    name, nesterov = "reno", True

    weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("reno", "weight", self.weight, 0)

    def direction(self, batch: Batch, x: Tensor, guidance: Guidance) -> Tensor:
        """Return the gradient of the reward minus that of the regularizer."""
        return guidance.gradient - self.weight * gradient_of(norm, x)


@register_sampler(
    kind="one-step",
    needs_gradient=True,
    algorithm=ReNO,
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
    return stepwise(
        reno,
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
