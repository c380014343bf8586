"""How a sampler is run, whatever the method: settings, micro-batches of particles, and the result."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import NoisetiltError, check_choice, check_integer, prompt_list
from .meter import Meter
from .noise import ParticleNoise
from .progress import Bar, progress_bar
from .protocols import FlowModel, OneStepModel, Reward, check_reward
from .records import StepRecord

NON_FINITE = ("raise", "plain_noise")
"""What may be done about a reward or gradient that is not finite."""


@dataclass(frozen=True)
class Run:
    """Settings that every sampler takes.

    Args:
        seed: fixes everything that is random. Particle p draws from a stream of its own, made of (seed, p), so that its
            result depends neither on the micro-batches nor on the other particles.
        micro_batch: how many batch entries the model is given at once, at least 1.
        first_particle: the number of the first particle; a run that was cut short goes on where it was.
        non_finite: "raise" stops at a reward or gradient that is not finite; "plain_noise" leaves that step of that
            particle unguided, and says so in its record. A finished particle may then have a NaN for its reward.
        on_finished: called with each `FinishedParticle` as soon as its micro-batch is through. What it has been called
            with is finished whatever comes later: on Ctrl-C the samplers let KeyboardInterrupt pass, and a caller that
            writes each particle here loses none.
        on_record: called with every `StepRecord` as it is made; `RecordWriter.write` puts it into a file.
        progress: show a progress bar.

    Raises:
        ValueError, TypeError: an argument out of its range.
    """

    seed: int = 0
    micro_batch: int = 1
    first_particle: int = 0
    non_finite: str = "raise"
    on_finished: Callable[["FinishedParticle"], None] | None = None
    on_record: Callable[[StepRecord], None] | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        check_integer("Run", "seed", self.seed, 0)
        check_integer("Run", "micro_batch", self.micro_batch, 1)
        check_integer("Run", "first_particle", self.first_particle, 0)
        check_choice("Run", "non_finite", self.non_finite, NON_FINITE)
        for name in ("on_finished", "on_record"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TypeError(f"Run: {name} must be callable or None, got {getattr(self, name)!r}")


class FinishedParticle(NamedTuple):
    """What a caller is handed as soon as it is there."""

    particle: int
    """Its number."""
    prompt: str
    latent: Tensor
    """x_0, for one-step models the noise; float32 (*shape), on the CPU."""
    image: Tensor
    """What was made of it, float32 (3, H, W), a video (3, F, H, W), with values in [0, 1], on the CPU."""
    reward: float
    """Of that image."""


class NonFiniteError(NoisetiltError, ArithmeticError):
    """A reward, gradient or latent is NaN or infinite.

    Attributes:
        method, step, particle: where.
        what: is not finite there, as a sentence.
    """

    def __init__(self, method: str, step: int, particle: int, what: str) -> None:
        self.method, self.step, self.particle = method, step, particle
        self.what = f"{method}: {what} at step {step} of particle {particle}"
        super().__init__(f'{self.what}; Run(non_finite="plain_noise") leaves such steps unguided')


@dataclass(frozen=True, eq=False)
class Result:
    """What a sampler returns; particles in order."""

    method: str
    prompts: tuple[str, ...]
    """Of each particle."""
    latents: Tensor
    """x_0 of all particles, for one-step models the noise; float32 (P, *shape), on the CPU."""
    rewards: Tensor
    """Of the finished images, float32 (P,), on the CPU."""
    nfe: int
    """Forwards of the model, counted per batch entry, all particles together."""
    records: tuple[StepRecord, ...]
    """Every step of every particle, in the order in which they were made."""
    chosen: tuple[int, ...]
    """Indices of the particles that are the method's answer: all, or from best_of_n one for each prompt."""

    @property
    def best(self) -> int:
        """Index of the particle with the highest reward, the first of several; NaN is the lowest."""
        return best_index(self.rewards.tolist())


def best_index(rewards: Sequence[float]) -> int:
    """Index of the highest reward, the first of several; NaN is the lowest."""
    return max(range(len(rewards)), key=lambda i: -math.inf if math.isnan(rewards[i]) else rewards[i])


@dataclass(frozen=True)
class Batch:
    """A micro-batch of particles on their way, with everything that they need from outside."""

    method: str
    particles: range
    """Their numbers."""
    prompts: Sequence[str]
    streams: Sequence[ParticleNoise]
    device: torch.device
    reward: Reward
    run: Run
    meter: Meter
    bar: Bar
    keep: Callable[[StepRecord], None]

    def __len__(self) -> int:
        return len(self.particles)

    def draw(self, count: int = 1) -> Tensor:
        """`count` draws of every particle, one particle after the other: (B * count, *shape)."""
        return torch.cat([stream.draw(count) for stream in self.streams]).to(self.device)

    def rewards(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards (b,) of images (b, 3, H, W) or videos (b, 3, F, H, W), float32."""
        if images.dim() not in (4, 5) or images.shape[:2] != (len(prompts), 3):
            raise ValueError(
                f"{self.method}: the model must make images (B, 3, H, W) or videos (B, 3, F, H, W), here with "
                f"B = {len(prompts)}, got {tuple(images.shape)}"
            )
        rewards = self.reward(images, prompts)
        if rewards.shape != (len(prompts),):
            raise ValueError(
                f"{self.method}: reward must return ({len(prompts)},), got {tuple(rewards.shape)}"
            )
        return rewards.float()

    def complain(self, step: int, index: int, what: str) -> str:
        """Raises NonFiniteError for the particle at `index`, unless plain noise is wanted; returns `what`."""
        if self.run.non_finite == "raise":
            raise NonFiniteError(self.method, step, self.particles[index], what)
        return what

    def record(
        self,
        step: int,
        t: float,
        rewards: Sequence[float] | None = None,
        gradient_norms: Sequence[float] | None = None,
        cosines: Sequence[float | None] | None = None,
        fallbacks: Sequence[str | None] | None = None,
    ) -> None:
        """Record a step of every particle, with the seconds since the last one shared among them."""
        seconds = {stage: value / len(self) for stage, value in self.meter.lap().items()}
        for index, particle in enumerate(self.particles):
            record = StepRecord(
                self.method,
                particle,
                step,
                t,
                reward=None if rewards is None else rewards[index],
                gradient_norm=None if gradient_norms is None else gradient_norms[index],
                cosine=None if cosines is None else cosines[index],
                seconds_model=seconds["model"],
                seconds_reward=seconds["reward"],
                seconds_whitening=seconds["whitening"],
                fallback=None if fallbacks is None else fallbacks[index],
            )
            self.keep(record)
        self.bar.update(len(self))


class Finish(NamedTuple):
    """Where a micro-batch has arrived."""

    latents: Tensor
    """(B, *shape)"""
    images: Tensor
    """(B, 3, H, W), videos (B, 3, F, H, W)"""
    rewards: Tensor
    """(B,)"""


def run_particles(
    method: str,
    model: FlowModel | OneStepModel,
    reward: Reward,
    prompts: str | Sequence[str],
    run: Run,
    travel: Callable[[Batch], Finish],
    steps: int,
    entries: int = 1,
) -> Result:
    """Take every particle from noise to its latent, in micro-batches.

    Args:
        method: for records and errors.
        model: checked.
        reward: as of `Reward`.
        prompts: one for each particle.
        run: settings.
        travel: takes a batch all the way, recording each step. It runs under `no_grad`.
        steps: how many of them it records.
        entries: how many batch entries the model is given for each particle.

    Raises:
        NonFiniteError: a finished latent or reward is not finite, after the others of its micro-batch have been handed
            to `run.on_finished`; or whatever `travel` raises.
    """
    prompts = prompt_list(method, prompts)
    check_reward(method, reward)
    if not isinstance(run, Run):
        raise TypeError(f"{method}: run must be a Run, got {run!r}")
    meter = Meter(model.device)
    latents: list[Tensor] = []
    rewards: list[float] = []
    records: list[StepRecord] = []

    def keep(record: StepRecord) -> None:
        records.append(record)
        if run.on_record is not None:
            run.on_record(record)

    # gradients are switched on where they are needed; they need tensors made outside of inference mode
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        progress_bar(run.progress, method, len(prompts) * steps) as bar,
    ):
        size = max(1, run.micro_batch // entries)
        for start in range(0, len(prompts), size):
            part = prompts[start : start + size]
            particles = range(run.first_particle + start, run.first_particle + start + len(part))
            streams = [ParticleNoise(run.seed, particle, model.shape) for particle in particles]
            batch = Batch(method, particles, part, streams, model.device, reward, run, meter, bar, keep)
            finish = Finish(*(tensor.float().cpu() for tensor in travel(batch)))
            _hand_over(batch, finish, steps - 1)
            latents.append(finish.latents)
            rewards += finish.rewards.tolist()
        return Result(
            method,
            tuple(prompts),
            torch.cat(latents),
            torch.tensor(rewards),
            meter.nfe,
            tuple(records),
            tuple(range(len(prompts))),
        )


def _hand_over(batch: Batch, finish: Finish, last_step: int) -> None:
    """Give the finished particles to the caller; complain about those that are not finite when the others are safe."""
    latents, images, rewards = finish
    finite = rewards.isfinite() & latents.flatten(1).isfinite().all(dim=1)
    wanted = finite if batch.run.non_finite == "raise" else torch.ones_like(finite)
    for index in wanted.nonzero().flatten().tolist():
        if batch.run.on_finished is not None:
            # copies, or a caller that keeps one would keep the micro-batch
            own = FinishedParticle(
                batch.particles[index],
                batch.prompts[index],
                latents[index].clone(),
                images[index].clone(),
                float(rewards[index]),
            )
            batch.run.on_finished(own)
    for index in (~finite).nonzero().flatten().tolist():
        batch.complain(last_step, index, f"non-finite {'latent' if rewards[index].isfinite() else 'reward'}")
