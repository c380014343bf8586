"""Particles and their micro-batches, which all samplers share: noise, rewards, records, results."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from .meter import Meter, Stage
from .noise import ParticleNoise
from .options import SamplerOptions
from .protocols import FlowModel, OneStepModel, Reward
from .records import StepRecord
from .result import FinishedParticle, NonFiniteError, Result
from .reward_call import call_reward


class Particles:
    """Particles of one call of a sampler: their noise, and what is known of them so far.

    Args:
        method: name of the sampler.
        model: model.
        reward: function that judges the images.
        prompts: prompt of each particle.
        options: options of the sampler.
        at_once: number of particles in a micro-batch, at least 1.
        records: number of records of each particle.

    Attributes:
        meter: counter of function evaluations and clock.
        latents, rewards, weights, log_z: values of the finished particles, see `Result`.
        records: record of every step so far.
    """

    def __init__(
        self,
        method: str,
        model: FlowModel | OneStepModel,
        reward: Reward,
        prompts: Sequence[str],
        options: SamplerOptions,
        at_once: int,
        records: int,
    ) -> None:
        self.method, self.model, self.reward, self.prompts = method, model, reward, prompts
        self.options = options
        self.meter = Meter(model.device)
        self.latents: list[Tensor] = []
        self.rewards: list[float] = []
        self.records: list[StepRecord] = []
        self.weights: list[list[float]] = []
        self.log_z: list[float] = []
        self._at_once, self._last_step = at_once, records - 1

    @property
    def batches(self) -> int:
        """Number of micro-batches."""
        return math.ceil(len(self.prompts) / self._at_once)

    def batch(self, number: int) -> "Batch":
        """Return a micro-batch, with the noise of its particles from the beginning."""
        first = number * self._at_once
        prompts = self.prompts[first : first + self._at_once]
        first += self.options.first_particle
        return Batch(self, range(first, first + len(prompts)), prompts)

    def add_record(self, record: StepRecord) -> None:
        """Keep a record and pass it to `options.on_record`."""
        self.records.append(record)
        if self.options.on_record is not None:
            self.options.on_record(record)

    def add_finished(
        self, batch: "Batch", latents: Tensor, images: Tensor, rewards: Tensor
    ) -> Callable[[], list[FinishedParticle]]:
        """Keep the result of a micro-batch and pass its particles to the caller; see `Batch.finish`.

        Returns:
            Function that makes the finished particles once more.
        """
        latents, images, rewards = (tensor.float().cpu() for tensor in (latents, images, rewards))
        finite = rewards.isfinite() & latents.flatten(1).isfinite().all(dim=1)
        valid = finite if self.options.non_finite == "raise" else torch.ones_like(finite)

        def finished() -> Iterator[FinishedParticle]:
            for index in valid.nonzero().flatten().tolist():
                # Copies: a view would keep the memory of the whole micro-batch.
                yield FinishedParticle(
                    batch.particles[index],
                    batch.prompts[index],
                    latents[index].clone(),
                    images[index].clone(),
                    float(rewards[index]),
                )

        if self.options.on_finished is not None:
            for particle in finished():
                self.options.on_finished(particle)
        for index in (~finite).nonzero().flatten().tolist():
            what = "latent" if rewards[index].isfinite() else "reward"
            batch.fall_back(self._last_step, index, f"non-finite {what}")
        self.latents.append(latents)
        self.rewards += rewards.tolist()
        return lambda: list(finished())

    def result(self) -> Result:
        """Return the result of all particles, each of which is finished."""
        return Result(
            self.method,
            tuple(self.prompts),
            torch.cat(self.latents),
            torch.tensor(self.rewards),
            self.meter.nfe,
            tuple(self.records),
            tuple(range(len(self.prompts))),
            torch.tensor(self.weights, dtype=torch.float64) if self.weights else None,
            torch.tensor(self.log_z, dtype=torch.float64) if self.log_z else None,
        )


def entries_of(particles: int, copies: int) -> list[range]:
    """Return the entries of each particle in tensors (particles copies, ...)."""
    return [range(first, first + copies) for first in range(0, particles * copies, copies)]


class Batch:
    """A micro-batch of B particles.

    Attributes:
        method: name of the sampler.
        particles: numbers of the particles.
        prompts: prompt of each particle.
        options: options of the sampler.
        meter: counter of function evaluations and clock.
        made: records of this step.
        finished: function that returns the `FinishedParticle`s of this step.
        latents: latents to show after the present step, if they are not those of the state: those of the
            result, (B, *shape), once the particles are finished.
        denoised: function that computes the estimates of x_0 at the present step, (B K, *shape) for K copies
            of each particle, or None for images without latents.
        preview: function that computes the images of the estimates, (B K, 3, H, W).
    """

    def __init__(self, owner: Particles, particles: range, prompts: Sequence[str]) -> None:
        self.method, self.options, self.meter = owner.method, owner.options, owner.meter
        self.particles, self.prompts = particles, prompts
        self.begin_step()
        self._owner = owner
        options, shape = owner.options, tuple(owner.model.shape)
        given: Sequence[Tensor | None] = [None] * len(particles)
        if options.latents is not None:
            given = list(self.rows_of("SamplerOptions: latents", options.latents))
        self.streams = [
            ParticleNoise(options.seed, particle, shape, first, options.noise)
            for particle, first in zip(particles, given, strict=True)
        ]

    def begin_step(self) -> None:
        """Forget what the step before has made and shown."""
        self.made: list[StepRecord] = []
        self.finished: Callable[[], list[FinishedParticle]] = list
        self.latents: Tensor | None = None
        self.denoised: Callable[[], Tensor] | None = None
        self.preview: Callable[[], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.particles)

    def draw(self, count: int = 1) -> Tensor:
        """Draw standard normal noise (B * count, *shape): `count` draws of the first particle, and so on."""
        return torch.cat([stream.draw(count) for stream in self.streams]).to(self._owner.model.device)

    def choices(self, index: int) -> np.random.Generator:
        """Return the generator of the decisions of the particle at `index`, see `ParticleNoise.choices`."""
        return self.streams[index].choices

    def parts(self, x: Tensor) -> Iterator[tuple[Tensor, list[str]]]:
        """Yield x (B K, *shape), K entries of each particle, in micro-batches with their prompts."""
        prompts = [prompt for prompt in self.prompts for _ in range(len(x) // len(self))]
        for start in range(0, len(x), self.options.micro_batch):
            part = slice(start, start + self.options.micro_batch)
            yield x[part], prompts[part]

    def uniform(self, count: int = 1) -> Tensor:
        """Draw `count` numbers in [0, 1) for every particle, float64 (B * count,), on the CPU.

        They come from streams of their own, see `ParticleNoise.choices`.
        """
        return torch.cat([torch.from_numpy(stream.choices.random(count)) for stream in self.streams])

    def permutations(self, count: int, size: int) -> Tensor:
        """Draw `count` permutations of range(size) for every particle, int64 (B, count, size).

        They are on the device of the model, from each particle's own stream of choices.
        """
        drawn = [
            [stream.choices.permutation(size) for _ in range(count)] or np.empty((0, size), dtype=np.int64)
            for stream in self.streams
        ]
        return torch.from_numpy(np.array(drawn)).to(self._owner.model.device)

    def rows_of(self, name: str, given: Tensor) -> Tensor:
        """Return the rows of this micro-batch, (B, *shape), of a tensor with one row for each particle.

        Args:
            name: name of the tensor in errors.
            given: (P, *shape) for the P particles of the call, or (1, *shape) for all of them.

        Raises:
            ValueError: the tensor has another shape.
        """
        count, shape = len(self._owner.prompts), tuple(self._owner.model.shape)
        if given.shape[1:] != shape or len(given) not in (1, count):
            raise ValueError(
                f"{name} must be {(count, *shape)}, one for each particle, or {(1, *shape)}, "
                f"got {tuple(given.shape)}"
            )
        first = self.particles.start - self.options.first_particle
        return given.expand(count, *shape)[first : first + len(self)]

    def time(self, stage: Stage) -> AbstractContextManager[None]:
        """Add the time of the block to a stage of the next record."""
        return self.meter.time(stage)

    def rewards(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the rewards (b,), float32, of b images (b, 3, H, W) or videos (b, 3, F, H, W).

        Raises:
            TypeError, ValueError: the images or the rewards have a wrong type or shape.
        """
        count = len(prompts)
        if images.dim() not in (4, 5) or images.shape[:2] != (count, 3):
            raise ValueError(
                f"{self.method}: the model must make images (B, 3, H, W) or videos (B, 3, F, H, W), "
                f"here with B = {count}, got {tuple(images.shape)}"
            )
        return call_reward(f"{self.method}: reward", self._owner.reward, images, prompts)

    def fall_back(self, step: int, index: int, reason: str) -> str:
        """Return the reason to leave the particle at `index` unguided, or raise if that is not allowed.

        Raises:
            NonFiniteError: `options.non_finite` is "raise".
        """
        if self.options.non_finite == "raise":
            raise NonFiniteError(self.method, step, self.particles[index], reason)
        return reason

    def record(
        self,
        step: int,
        t: float,
        rewards: Sequence[float] | None = None,
        gradient_norms: Sequence[float] | None = None,
        cosines: Sequence[float | None] | None = None,
        fallbacks: Sequence[str | None] | None = None,
        noise_peaks: Sequence[float] | None = None,
        ess: Sequence[float] | None = None,
        acceptance: Sequence[float] | None = None,
    ) -> None:
        """Record a step of every particle. Each gets an equal share of the seconds since the last record."""
        seconds = {stage: value / len(self) for stage, value in self.meter.lap().items()}
        for index, particle in enumerate(self.particles):
            made = StepRecord(
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
                noise_peak=None if noise_peaks is None else noise_peaks[index],
                ess=None if ess is None else ess[index],
                acceptance=None if acceptance is None else acceptance[index],
            )
            self.made.append(made)
            self._owner.add_record(made)

    def show(
        self, decode: Callable[[Tensor], Tensor], estimate: Callable[[], Tensor], latent: bool = True
    ) -> None:
        """Set what the present step shows of its estimates. Nothing is computed before it is asked for.

        Args:
            decode: function of the estimates (b, ...) -> images (b, 3, H, W), called with micro-batches.
            estimate: function that returns the estimates, (B K, ...).
            latent: False for estimates that are not latents.
        """
        self.denoised = estimate if latent else None
        self.preview = lambda: torch.cat([decode(part) for part, _ in self.parts(estimate())])

    def keep_weights(self, weights: Sequence[list[float]], log_z: Sequence[float]) -> None:
        """Keep the final weights of the copies, and log Z of every particle, for the result; see `Result`."""
        self._owner.weights += weights
        self._owner.log_z += log_z

    def finish(self, latents: Tensor, images: Tensor, rewards: Tensor, x0: Tensor | None) -> None:
        """Hand over the finished particles to the caller and to the result.

        Args:
            latents: (B, *shape).
            images: (B, 3, H, W), or videos (B, 3, F, H, W).
            rewards: (B,).
            x0: latents of the images, (B, ...), or None if they have none.

        Raises:
            NonFiniteError: a latent or reward is not finite and `options.non_finite` is "raise". The other
                particles of the micro-batch are handed over first.
        """
        self.latents = latents
        self.denoised = None if x0 is None else lambda: x0
        self.preview = lambda: images
        self.finished = self._owner.add_finished(self, latents, images, rewards)


def joined(reasons: Sequence[str | None]) -> str | None:
    """Return one reason for the K entries of a particle: the first one, with the number of its entries."""
    first = next(filter(None, reasons), None)
    if first is None or len(reasons) == 1:
        return first
    return f"{first} of {reasons.count(first)} of {len(reasons)} copies"
