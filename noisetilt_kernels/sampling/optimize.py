"""The loop of the methods that optimise noise: WGNC, ReNO, PRNO, MPGR and DNO."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..checks import check_choice, check_integer, check_number
from .gradients import Guidance, column_of, cosines, guidance_through, norms
from .loop import Batch, start_particles
from .operators import Operator
from .options import SamplerOptions
from .protocols import OneStepModel, Reward, check_model, preview_of
from .result import Result
from .typicality import spectral_peaks

Answer = Literal["last", "best"]
"""Iterate that a method returns: the last one, or the one with the highest reward.

Rewards of iterates are compared as they were computed for the gradient: by `decode_preview` if the model has
it. The reward of the answer itself is then that of its finished image.
"""

Direction = Callable[[Batch, Tensor, Guidance], Tensor]
"""Function that makes the direction of ascent, (B, *shape), of the noise and the gradients of the rewards."""


class Evaluated(NamedTuple):
    """Noise of a micro-batch and what the model made of it."""

    noise: Tensor
    """(B, *shape)."""
    output: Tensor
    """Output of the model, (B, ...)."""
    rewards: Tensor
    """Rewards, float32 (B,), on the CPU."""


def check_optimizer(function: str, iterations: int, lr: float, clip: float, answer: str) -> None:
    """Raise ValueError or TypeError for an argument out of its range that the methods share."""
    check_integer(function, "iterations", iterations, 0)
    check_number(function, "lr", lr, 0)
    check_number(function, "clip", clip, 0)
    check_choice(function, "answer", answer, get_args(Answer))


def optimize(
    batch: Batch,
    noise: Tensor,
    evaluate: Callable[[Tensor, int], Guidance],
    judge: Callable[[Tensor], tuple[Tensor, Tensor]],
    *,
    iterations: int,
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    clip: float,
    direction: Direction,
    project: Operator | None = None,
    answer: str,
) -> Evaluated:
    """Move noise toward higher rewards, with a record of each iteration.

    A particle without a usable gradient stays where it is at that iteration.

    Args:
        batch: micro-batch.
        noise: first noise (B, *shape).
        evaluate: function that returns the gradient of the rewards in the noise, at an iteration.
        judge: function that returns output and rewards without a gradient, for the last noise.
        iterations: number of moves. The noise is evaluated once more often.
        optimizer: function that makes the optimiser of parameters, with maximize=True.
        clip: largest norm of the direction that the optimiser gets, for each particle.
        direction: function that makes the direction of ascent.
        project: function that maps the moved noise to the noise of the next iteration.
        answer: "last" or "best".

    Returns:
        The last noise or that with the highest reward, and what the model makes of it.

    Raises:
        NonFiniteError: a reward or gradient is not finite and `options.non_finite` is "raise".
    """
    # One parameter for each particle: the optimiser then works on the same lengths in every micro-batch, and
    # skips a particle without a gradient.
    latents = list(noise)
    steps = optimizer(latents)
    best: Evaluated | None = None
    for iteration in range(iterations):
        noise = torch.stack(latents)
        guidance = evaluate(noise, iteration)
        if answer == "best":
            best = better(best, Evaluated(noise, guidance.output, torch.tensor(guidance.rewards)))
        with batch.time("whitening"):
            ascent = direction(batch, noise, guidance)
        sizes = norms(ascent)
        for latent, move, size, reason in zip(latents, ascent, sizes, guidance.fallbacks, strict=True):
            factor = clip / size if size > clip else 1.0
            latent.grad = move * factor if reason is None else None
        steps.step()
        if project is not None:
            with batch.time("whitening"):
                projected = project(torch.stack(latents))
            for latent, moved, reason in zip(latents, projected, guidance.fallbacks, strict=True):
                if reason is None:
                    latent.copy_(moved)
        similarity = cosines(guidance, ascent)
        batch.record(iteration, 1.0, guidance.rewards, guidance.norms, similarity, guidance.fallbacks)
    noise = torch.stack(latents)
    output, rewards = judge(noise)
    last = Evaluated(noise, output, rewards.cpu())
    return last if answer == "last" else better(best, last, batch.options.non_finite == "raise")


def better(best: Evaluated | None, new: Evaluated, keep_non_finite: bool = False) -> Evaluated:
    """Return for each particle what has the higher reward; the older one wins a tie, and NaN is the lowest.

    With `keep_non_finite` a reward of the new one that is not finite is kept, so that it becomes an error.
    """
    if best is None:
        return new
    finite = new.rewards.isfinite()
    worse = best.rewards.isfinite() & (best.rewards >= new.rewards)
    wins = torch.where(finite, ~worse, keep_non_finite)
    return Evaluated(
        *(torch.where(column_of(wins.to(b.device), b), b, a) for a, b in zip(best, new, strict=True))
    )


def finished(
    batch: Batch, decode: Callable[[Tensor], Tensor], answer: Evaluated, previewed: bool
) -> tuple[Tensor, Tensor]:
    """Return the finished images (B, 3, H, W) and their rewards (B,), on the CPU, of an answer.

    With `non_finite="raise"` a reward of a preview that is not finite is kept, so that it becomes an error.

    Args:
        batch: micro-batch.
        decode: decoder of finished images.
        answer: answer with latents x_0 as output.
        previewed: True if the rewards of the answer are those of previews.
    """
    with batch.time("reward"):
        images = decode(answer.output)
        if not previewed:
            return images, answer.rewards
        rewards = batch.rewards(images, batch.prompts).cpu()
    if batch.options.non_finite == "raise":
        rewards = torch.where(answer.rewards.isfinite(), rewards, answer.rewards)
    return images, rewards


def optimize_one_step(
    function: str,
    model: OneStepModel,
    reward: Reward,
    prompts: str | Sequence[str],
    options: SamplerOptions | None,
    *,
    iterations: int,
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    clip: float,
    direction: Direction,
    project: Operator | None = None,
    answer: str,
) -> Result:
    """Optimise the noise of a one-step model, one particle for each prompt; see `optimize`."""
    check_model(function, model, OneStepModel)
    # in two stages, with latents x_0 between them, or in one
    staged: Any = model
    preview = preview_of(model)
    forward, decode = (model.generate, _unchanged) if preview is None else (staged.denoised, preview)
    with start_particles(function, model, reward, prompts, options, iterations + 1) as particles:
        for batch in particles.batches():

            def evaluate(noise: Tensor, iteration: int, batch: Batch = batch) -> Guidance:
                return guidance_through(
                    batch,
                    lambda noise: batch.meter.forward(forward, noise, batch.prompts),
                    decode,
                    noise,
                    iteration,
                )

            def judge(noise: Tensor, batch: Batch = batch) -> tuple[Tensor, Tensor]:
                output = batch.meter.forward(forward, noise, batch.prompts)
                with batch.time("reward"):
                    return output, batch.rewards(decode(output), batch.prompts)

            found = optimize(
                batch,
                batch.draw(),
                evaluate,
                judge,
                iterations=iterations,
                optimizer=optimizer,
                clip=clip,
                direction=direction,
                project=project,
                answer=answer,
            )
            decode_finished = _unchanged if preview is None else staged.decode
            images, rewards = finished(batch, decode_finished, found, preview is not None)
            peaks = spectral_peaks(found.noise)
            batch.record(iterations, 1.0, rewards.tolist(), noise_peaks=peaks)
            batch.finish(found.noise, images, rewards)
        return particles.result()


def _unchanged(images: Tensor) -> Tensor:
    return images
