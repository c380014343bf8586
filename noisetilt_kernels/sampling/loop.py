"""The loop over micro-batches that all samplers share: noise, rewards, records, finished particles."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..checks import prompt_list
from .meter import Meter, Stage
from .noise import ParticleNoise
from .options import SamplerOptions
from .progress import Bar, progress_bar
from .protocols import FlowModel, OneStepModel, Reward, check_reward
from .records import StepRecord
from .result import FinishedParticle, NonFiniteError, Result
from .reward_call import call_reward

if TYPE_CHECKING:  # it imports this module
    from .gradients import Guidance


@contextmanager
def start_particles(
    method: str,
    model: FlowModel | OneStepModel,
    reward: Reward,
    prompts: str | Sequence[str],
    options: SamplerOptions | None,
    steps: int,
    entries: int = 1,
    alone: bool = False,
) -> Iterator["Particles"]:
    """Check the arguments and start one particle for each prompt. The block runs without gradients.

        with start_particles("base", model, reward, prompts, options, steps) as particles:
            for batch in particles.batches():
                x = batch.draw()
                ...
                batch.finish(x, images, rewards)
            return particles.result()

    Args:
        method: name of the sampler, for records and errors.
        model: model, already checked.
        reward: function that judges the images.
        prompts: one prompt for each particle; a string is one particle.
        options: options, or None for the defaults.
        steps: number of steps that the sampler records for each particle.
        entries: number of batch entries that a particle needs at once.
        alone: particles run one after another.

    Raises:
        ValueError, TypeError: prompts, reward or options are not valid.
        ImportError: a progress bar is requested, and tqdm is not installed.
    """
    prompts = prompt_list(method, prompts)
    check_reward(method, reward)
    if options is None:
        options = SamplerOptions()
    if not isinstance(options, SamplerOptions):
        raise TypeError(f"{method}: options must be a SamplerOptions, got {options!r}")
    # Samplers enable gradients where they need them. Gradients need tensors made outside of inference mode.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        progress_bar(options.progress, method, len(prompts) * steps) as bar,
    ):
        yield Particles(method, model, reward, prompts, options, steps, entries, alone, bar)


class Particles:
    """All particles of one call of a sampler, worked on in micro-batches; see `start_particles`."""

    def __init__(
        self,
        method: str,
        model: FlowModel | OneStepModel,
        reward: Reward,
        prompts: list[str],
        options: SamplerOptions,
        steps: int,
        entries: int,
        alone: bool,
        bar: Bar,
    ) -> None:
        self.method, self.model, self.reward, self.options = method, model, reward, options
        self.meter = Meter(model.device)
        self._prompts, self._steps, self._bar = prompts, steps, bar
        self._at_once = 1 if alone else max(1, options.micro_batch // entries)
        self._latents: list[Tensor] = []
        self._rewards: list[float] = []
        self._records: list[StepRecord] = []
        self._weights: list[list[float]] = []
        self._log_z: list[float] = []

    def batches(self) -> Iterator["Batch"]:
        """Yield micro-batches: as many particles as fit with all their batch entries, at least one."""
        size = self._at_once
        for start in range(0, len(self._prompts), size):
            prompts = self._prompts[start : start + size]
            first = self.options.first_particle + start
            yield Batch(self, range(first, first + len(prompts)), prompts)

    def add_record(self, record: StepRecord) -> None:
        """Keep a record, pass it to `options.on_record`, and advance the progress bar."""
        self._records.append(record)
        if self.options.on_record is not None:
            self.options.on_record(record)
        self._bar.update(1)

    def add_finished(self, batch: "Batch", latents: Tensor, images: Tensor, rewards: Tensor) -> None:
        """Keep the result of a micro-batch and pass its particles to the caller; see `Batch.finish`."""
        latents, images, rewards = (tensor.float().cpu() for tensor in (latents, images, rewards))
        finite = rewards.isfinite() & latents.flatten(1).isfinite().all(dim=1)
        valid = finite if self.options.non_finite == "raise" else torch.ones_like(finite)
        for index in valid.nonzero().flatten().tolist():
            if self.options.on_finished is not None:
                # Copies: a view would keep the memory of the whole micro-batch.
                self.options.on_finished(
                    FinishedParticle(
                        batch.particles[index],
                        batch.prompts[index],
                        latents[index].clone(),
                        images[index].clone(),
                        float(rewards[index]),
                    )
                )
        for index in (~finite).nonzero().flatten().tolist():
            what = "latent" if rewards[index].isfinite() else "reward"
            batch.fall_back(self._steps - 1, index, f"non-finite {what}")
        self._latents.append(latents)
        self._rewards += rewards.tolist()

    def add_weights(self, weights: Sequence[list[float]], log_z: Sequence[float]) -> None:
        """Keep the weights of a micro-batch; see `Batch.keep_weights`."""
        self._weights += weights
        self._log_z += log_z

    def result(self) -> Result:
        """Return the result of all particles, each of which is finished."""
        return Result(
            self.method,
            tuple(self._prompts),
            torch.cat(self._latents),
            torch.tensor(self._rewards),
            self.meter.nfe,
            tuple(self._records),
            tuple(range(len(self._prompts))),
            torch.tensor(self._weights, dtype=torch.float64) if self._weights else None,
            torch.tensor(self._log_z, dtype=torch.float64) if self._log_z else None,
        )


class Batch:
    """A micro-batch of B particles.

    Attributes:
        method: name of the sampler.
        particles: numbers of the particles.
        prompts: prompt of each particle.
        options: options of the sampler.
        meter: counter of function evaluations and clock.
        known: latents (B, *shape), and velocity and gradient there, from a forward that the start of the
            sampler has made already. The first step takes them in place of a second forward.
    """

    def __init__(self, owner: Particles, particles: range, prompts: Sequence[str]) -> None:
        self.method, self.options, self.meter = owner.method, owner.options, owner.meter
        self.particles, self.prompts = particles, prompts
        self.known: tuple[Tensor, Guidance] | None = None
        self._owner = owner
        seed, shape = owner.options.seed, owner.model.shape
        self._streams = [ParticleNoise(seed, particle, shape) for particle in particles]

    def __len__(self) -> int:
        return len(self.particles)

    def draw(self, count: int = 1) -> Tensor:
        """Draw standard normal noise (B * count, *shape): `count` draws of the first particle, and so on."""
        return torch.cat([stream.draw(count) for stream in self._streams]).to(self._owner.model.device)

    def choices(self, index: int) -> np.random.Generator:
        """Return the generator of the decisions of the particle at `index`, see `ParticleNoise.choices`."""
        return self._streams[index].choices

    def entries(self, count: int) -> list[range]:
        """Return the entries of each particle in tensors (count, ...) with K = count / B entries of each."""
        copies = count // len(self)
        return [range(first, first + copies) for first in range(0, count, copies)]

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
        return torch.cat([torch.from_numpy(stream.choices.random(count)) for stream in self._streams])

    def permutations(self, count: int, size: int) -> Tensor:
        """Draw `count` permutations of range(size) for every particle, int64 (B, count, size).

        They are on the device of the model, from each particle's own stream of choices.
        """
        drawn = [
            [stream.choices.permutation(size) for _ in range(count)] or np.empty((0, size), dtype=np.int64)
            for stream in self._streams
        ]
        return torch.from_numpy(np.array(drawn)).to(self._owner.model.device)

    def take_known(self, x: Tensor) -> "Guidance | None":
        """Return what is known at the tensor x and forget it, or None if it is known at another one."""
        if self.known is None or self.known[0] is not x:
            return None
        guidance, self.known = self.known[1], None
        return guidance

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
            self._owner.add_record(
                StepRecord(
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
            )

    def keep_weights(self, weights: Sequence[list[float]], log_z: Sequence[float]) -> None:
        """Keep the final weights of the copies, and log Z of every particle, for the result; see `Result`."""
        self._owner.add_weights(weights, log_z)

    def finish(self, latents: Tensor, images: Tensor, rewards: Tensor) -> None:
        """Hand over the finished particles to the caller and to the result.

        Args:
            latents: (B, *shape).
            images: (B, 3, H, W), or videos (B, 3, F, H, W).
            rewards: (B,).

        Raises:
            NonFiniteError: a latent or reward is not finite and `options.non_finite` is "raise". The other
                particles of the micro-batch are handed over first.
        """
        self._owner.add_finished(self, latents, images, rewards)


def joined(reasons: Sequence[str | None]) -> str | None:
    """Return one reason for the K entries of a particle: the first one, with the number of its entries."""
    first = next(filter(None, reasons), None)
    if first is None or len(reasons) == 1:
        return first
    return f"{first} of {reasons.count(first)} of {len(reasons)} copies"
