"""Steps of the methods that optimise noise: WGNC, ReNO, PRNO, MPGR and DNO."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..checks import check_choice, check_integer, check_number
from .algorithm import Algorithm
from .batch import Batch
from .gradients import Guidance, column_of, cosines, guidance_through, norms
from .plain import OnCPU
from .protocols import OneStepModel, preview_of
from .typicality import spectral_peaks

Answer = Literal["last", "best"]
"""Iterate that a method returns: the last one, or the one with the highest reward.

Rewards of iterates are compared as they were computed for the gradient: by `decode_preview` if the model has
it. The reward of the answer itself is then that of its finished image.
"""


class Evaluated(NamedTuple):
    """Noise of a micro-batch and what the model made of it."""

    noise: Tensor
    """(B, *shape)."""
    output: Tensor
    """Output of the model, (B, ...)."""
    rewards: OnCPU
    """Rewards, float32 (B,), on the CPU."""


@dataclass
class NoiseState:
    """State of a method that optimises noise.

    Args:
        x: noise (B, *shape).
        memory: state of the optimiser.
        best: noise with the highest reward of each particle so far, if the method returns it.
    """

    x: Tensor
    memory: dict[int, Any] = field(default_factory=dict)
    best: Evaluated | None = None

    def put(self, x: Tensor) -> None:
        """Replace the noise."""
        self.x = x


@dataclass(kw_only=True)
class NoiseAlgorithm(Algorithm[NoiseState]):
    """Algorithm that moves noise toward higher rewards.

    A particle without a usable gradient stays where it is at that iteration. The noise is evaluated once more
    than it is moved. `direction` and `projected` can be changed by subclasses.
    """

    state_type = NoiseState
    fixed: ClassVar[tuple[str, ...]] = ("iterations", "answer")
    nesterov: ClassVar[bool] = False

    iterations: int
    lr: float
    clip: float
    answer: Answer

    def __post_init__(self) -> None:
        check_integer(self.name, "iterations", self.iterations, 0)
        check_number(self.name, "lr", self.lr, 0)
        check_number(self.name, "clip", self.clip, 0)
        check_choice(self.name, "answer", self.answer, get_args(Answer))

    @property
    def records(self) -> int:
        """Number of evaluations of the noise."""
        return self.iterations + 1

    def optimizer(self, latents: list[Tensor]) -> torch.optim.Optimizer:
        """Return the optimiser of parameters: Adam, or gradient ascent with Nesterov's momentum."""
        if self.nesterov:
            return torch.optim.SGD(latents, lr=self.lr, momentum=0.9, nesterov=True, maximize=True)
        return torch.optim.Adam(latents, lr=self.lr, maximize=True)

    @abstractmethod
    def evaluate(self, batch: Batch, noise: Tensor, iteration: int) -> Guidance:
        """Return the gradient of the rewards in the noise (B, *shape)."""

    @abstractmethod
    def judge(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return output (B, ...) and rewards (B,) of noise, without a gradient."""

    @abstractmethod
    def show(self, batch: Batch, output: Tensor) -> None:
        """Let the present step show the output of the model, see `Batch.show`."""

    @abstractmethod
    def finish(self, batch: Batch, found: Evaluated) -> None:
        """Record the answer and finish the batch."""

    def direction(self, batch: Batch, x: Tensor, guidance: Guidance) -> Tensor:
        """Return the direction of ascent (B, *shape) of the noise, from the gradients of the rewards."""
        return guidance.gradient

    def projected(self, x: Tensor) -> Tensor:
        """Return the noise of the next iteration, from the moved noise (B, *shape)."""
        return x

    def step(self, batch: Batch, state: NoiseState, index: int) -> None:
        """Move the noise once, or finish."""
        if index == self.iterations:
            output, rewards = self.judge(batch, state.x)
            last = Evaluated(state.x, output, rewards.cpu())
            keep_non_finite = batch.options.non_finite == "raise"
            self.finish(batch, last if self.answer == "last" else better(state.best, last, keep_non_finite))
            return
        guidance = self.evaluate(batch, state.x, index)
        self.show(batch, guidance.output)
        if self.answer == "best":
            found = Evaluated(state.x, guidance.output, torch.tensor(guidance.rewards))
            state.best = better(state.best, found)
        with batch.time("whitening"):
            ascent = self.direction(batch, state.x, guidance)
        state.x = self._moved(batch, state, ascent, guidance)
        similarity = cosines(guidance, ascent)
        batch.record(index, 1.0, guidance.rewards, guidance.norms, similarity, guidance.fallbacks)

    def _moved(self, batch: Batch, state: NoiseState, ascent: Tensor, guidance: Guidance) -> Tensor:
        """Return the noise after a step of the optimiser along the direction of ascent."""
        # One parameter for each particle: the optimiser then works on the same lengths in every micro-batch,
        # and skips a particle without a gradient.
        moved = state.x.clone()
        latents = list(moved)  # views, which the optimiser changes
        optimizer = self.optimizer(latents)
        # The arguments of the optimiser are those of this step.
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state.memory})
        for latent, move, size, reason in zip(
            latents, ascent, norms(ascent), guidance.fallbacks, strict=True
        ):
            factor = self.clip / size if size > self.clip else 1.0
            latent.grad = move * factor if reason is None else None
        optimizer.step()
        state.memory = optimizer.state_dict()["state"]
        with batch.time("whitening"):
            projected = self.projected(moved)
        if projected is moved:
            return moved
        free = torch.tensor([reason is None for reason in guidance.fallbacks], device=moved.device)
        return torch.where(column_of(free, moved), projected, moved)


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


@dataclass(kw_only=True)
class OneStepAlgorithm(NoiseAlgorithm):
    """Algorithm that optimises the noise of a one-step model."""

    def prepare(self, model: OneStepModel) -> None:
        """Keep the functions of the model: in two stages with latents x_0 between them, or in one."""
        staged: Any = model
        preview = preview_of(model)
        self._previewed = preview is not None
        self._forward: Callable[..., Tensor] = model.generate if preview is None else staged.denoised
        self._decode: Callable[[Tensor], Tensor] = _unchanged if preview is None else preview
        self._decode_finished: Callable[[Tensor], Tensor] = _unchanged if preview is None else staged.decode

    def begin(self, batch: Batch) -> NoiseState:
        """Return the first noise."""
        return NoiseState(batch.draw())

    def evaluate(self, batch: Batch, noise: Tensor, iteration: int) -> Guidance:
        """Return the gradient of the rewards in the noise."""
        return guidance_through(
            batch,
            lambda noise: batch.meter.forward(self._forward, noise, batch.prompts),
            self._decode,
            noise,
            iteration,
        )

    def judge(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return output and rewards of noise."""
        output = batch.meter.forward(self._forward, noise, batch.prompts)
        with batch.time("reward"):
            return output, batch.rewards(self._decode(output), batch.prompts)

    def show(self, batch: Batch, output: Tensor) -> None:
        """Let the present step show the images of the noise."""
        batch.show(self._decode, lambda: output, latent=self._previewed)

    def finish(self, batch: Batch, found: Evaluated) -> None:
        """Record the answer and finish the batch."""
        images, rewards = finished(batch, self._decode_finished, found, self._previewed)
        batch.record(self.iterations, 1.0, rewards.tolist(), noise_peaks=spectral_peaks(found.noise))
        batch.finish(found.noise, images, rewards, found.output if self._previewed else None)


def _unchanged(images: Tensor) -> Tensor:
    return images
