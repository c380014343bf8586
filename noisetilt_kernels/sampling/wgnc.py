"""Optimising the noise of a one-step model under white Gaussian noise constraints (WGNC, algorithm 1)."""

from collections.abc import Sequence

import torch

from ..checks import check_integer, check_number
from .gradients import cosines, norms, one_step_guidance
from .operators import operator_by_name
from .protocols import OneStepModel, Reward, check_model
from .run import Batch, Finish, Result, Run, run_particles


def wgnc(
    model: OneStepModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    iterations: int = 200,
    lr: float = 0.02,
    clip: float = 0.03,
    operator: str = "wgnc",
    run: Run | None = None,
) -> Result:
    """Repeat x <- Adam(x, P(grad r(M(x)))), x <- P(x) for a one-step model M (DESIGN section 7).

    NFE per particle: iterations + 1, the last one for the reward of what came out.

    Args:
        model: M.
        reward: what is to rise.
        prompts: one for each particle; a string is one particle.
        iterations: at least 1; 200 for FLUX-schnell, 50 for SDXL-Turbo.
        lr: learning rate of Adam; 0.02 for FLUX-schnell, 0.1 for SDXL-Turbo.
        clip: upper limit of the norm of what Adam is given, P(grad). That has norm sqrt(N) whatever the gradient's was,
            so the limit scales it, and matters only against Adam's epsilon.
        operator: P; "wgnc", or another of "w", "norm" and "identity" in its place.
        run: seed, micro-batches, callbacks; None is `Run()`. With `non_finite="plain_noise"` an iteration without a
            usable gradient leaves the latent as it is.

    Returns:
        Result whose latents are the optimised noise; `model.generate` makes the images of it.

    Raises:
        ValueError, TypeError: an argument out of its range, before any work; the model or the reward returns a wrong
            shape or has no gradient.
        NonFiniteError: a reward, gradient or latent is not finite.
    """
    check_model("wgnc", model, OneStepModel)
    check_integer("wgnc", "iterations", iterations, 1)
    check_number("wgnc", "lr", lr, 0)
    check_number("wgnc", "clip", clip, 0)
    project = operator_by_name("wgnc", operator, tuple(model.shape))

    def travel(batch: Batch) -> Finish:
        # A parameter for each particle: Adam then has the same lengths to work on whatever the micro-batch, and leaves
        # out the ones without a gradient.
        latents = list(batch.draw())
        optimizer = torch.optim.Adam(latents, lr=lr, maximize=True)
        for iteration in range(iterations):
            guidance = one_step_guidance(batch, model, torch.stack(latents), iteration)
            with batch.meter.time("whitening"):
                direction = project(guidance.gradient)
            sizes = norms(direction)
            for latent, ascent, size, reason in zip(
                latents, direction, sizes, guidance.fallbacks, strict=True
            ):
                latent.grad = ascent * min(1.0, clip / size) if reason is None else None
            optimizer.step()
            with batch.meter.time("whitening"):
                projected = project(torch.stack(latents))
            for latent, moved, reason in zip(latents, projected, guidance.fallbacks, strict=True):
                if reason is None:
                    latent.copy_(moved)
            similarity = cosines(guidance, direction)
            batch.record(iteration, 1.0, guidance.rewards, guidance.norms, similarity, guidance.fallbacks)

        x = torch.stack(latents)
        images = batch.meter.forward(model.generate, x, batch.prompts)
        with batch.meter.time("reward"):
            rewards = batch.rewards(images, batch.prompts)
        batch.record(iterations, 1.0, rewards.tolist())
        return Finish(x, images, rewards)

    return run_particles("wgnc", model, reward, prompts, run or Run(), travel, iterations + 1)
