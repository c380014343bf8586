"""WGNC: the noise of a one-step model optimised under white Gaussian noise constraints (WGNC algorithm 1)."""

from collections.abc import Sequence

import torch

from ..checks import check_choice, check_integer, check_number
from .gradients import cosines, norms, one_step_guidance
from .loop import Batch, start_particles
from .operators import OPERATORS, operator_by_name
from .options import SamplerOptions
from .protocols import OneStepModel, Reward, check_model
from .registry import register_sampler
from .result import Result
from .typicality import spectral_peaks


def check_wgnc(*, iterations: int, lr: float, clip: float, operator: str) -> None:
    """Raise ValueError or TypeError for an argument of `wgnc` out of its range."""
    check_integer("wgnc", "iterations", iterations, 1)
    check_number("wgnc", "lr", lr, 0)
    check_number("wgnc", "clip", clip, 0)
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
    options: SamplerOptions | None = None,
) -> Result:
    """Repeat x <- Adam(x, P(grad r(M(x)))), x <- P(x) for a one-step model M (DESIGN section 7).

    NFE per particle: iterations + 1. The last forward makes the finished image.

    Args:
        model: one-step model M.
        reward: differentiable function of the images, to be increased.
        prompts: one prompt for each particle; a string is one particle.
        iterations: number of iterations, at least 1. The authors use 200 for FLUX-schnell and 50 for
            SDXL-Turbo.
        lr: learning rate of Adam. The authors use 0.02 for FLUX-schnell and 0.1 for SDXL-Turbo.
        clip: largest norm of P(grad) that Adam gets. P(grad) has norm about sqrt(N) for every
            gradient, so clipping scales it; the scale matters only relative to Adam's epsilon.
        operator: projection P: "wgnc", "w", "norm" or "identity".
        options: seed, micro-batches, callbacks; None means `SamplerOptions()`. With
            `non_finite="plain_noise"` an iteration without a usable gradient leaves the latent unchanged.

    Returns:
        Result with the optimised noise as latents. `model.generate` makes the images from it.

    Raises:
        ValueError, TypeError: an argument is out of its range (raised before any work), or the model or the
            reward returns a wrong shape or has no gradient.
        NonFiniteError: a reward, gradient or latent is not finite.
    """
    check_wgnc(iterations=iterations, lr=lr, clip=clip, operator=operator)
    check_model("wgnc", model, OneStepModel)
    project = operator_by_name("wgnc", operator, tuple(model.shape))
    with start_particles("wgnc", model, reward, prompts, options, iterations + 1) as particles:
        for batch in particles.batches():
            # One parameter for each particle: Adam then works on the same lengths in every micro-batch, and
            # skips a particle without a gradient.
            latents = list(batch.draw())
            optimizer = torch.optim.Adam(latents, lr=lr, maximize=True)
            for iteration in range(iterations):
                guidance = one_step_guidance(batch, model, torch.stack(latents), iteration)
                with batch.time("whitening"):
                    direction = project(guidance.gradient)
                sizes = norms(direction)
                for latent, ascent, size, reason in zip(
                    latents, direction, sizes, guidance.fallbacks, strict=True
                ):
                    latent.grad = ascent * min(1.0, clip / size) if reason is None else None
                optimizer.step()
                with batch.time("whitening"):
                    projected = project(torch.stack(latents))
                for latent, moved, reason in zip(latents, projected, guidance.fallbacks, strict=True):
                    if reason is None:
                        latent.copy_(moved)
                similarity = cosines(guidance, direction)
                batch.record(iteration, 1.0, guidance.rewards, guidance.norms, similarity, guidance.fallbacks)
            _finish(batch, model, torch.stack(latents), iterations)
        return particles.result()


def _finish(batch: Batch, model: OneStepModel, x: torch.Tensor, iterations: int) -> None:
    """Make and judge the images of the optimised noise, and finish the batch."""
    images = batch.meter.forward(model.generate, x, batch.prompts)
    with batch.time("reward"):
        rewards = batch.rewards(images, batch.prompts)
    batch.record(iterations, 1.0, rewards.tolist(), noise_peaks=spectral_peaks(x))
    batch.finish(x, images, rewards)
