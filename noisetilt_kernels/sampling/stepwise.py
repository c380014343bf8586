"""Samplers advanced step by step, in a loop of the caller."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from ..checks import check_choice, prompt_list, shown
from .algorithm import Algorithm
from .batch import Batch, Particles
from .options import SamplerOptions
from .plain import from_plain, to_plain
from .progress import progress_bar
from .protocols import FlowModel, OneStepModel, Reward, check_model, check_reward
from .records import StepRecord
from .registry import SAMPLERS, Sampler
from .result import FinishedParticle, Result

_VERSION = 1
"""Version of the form of `SamplingRun.state_dict`."""

_PARTS = {
    "run",
    "micro_batch",
    "step",
    "nfe",
    "latents",
    "rewards",
    "weights",
    "log_z",
    "records",
    "state",
    "noise",
}
"""Parts of a state."""


@contextmanager
def _sampling() -> Iterator[None]:
    """Leave inference mode and disable gradients. Samplers enable gradients where they need them."""
    with torch.inference_mode(False), torch.no_grad():
        yield


@dataclass(frozen=True, eq=False)
class StepOutput:
    """Outcome of one step of a micro-batch of B particles.

    A sampler with K copies of each particle (`das`, `fk`, `psi`) has B K entries. K is 1 for the others.
    """

    particles: range
    """Numbers of the particles."""
    prompts: tuple[str, ...]
    """Prompt of each particle."""
    index: int
    """Number of the step, from 0."""
    count: int
    """Number of steps of the micro-batch."""
    latents: Tensor
    """Latents after the step, (B K, *shape), on the device of the model. Do not change them in place. `dno`
    has the noise of all n steps of a trajectory, (B, n, *shape). After the last step they are those of the
    result, (B, *shape)."""
    records: tuple[StepRecord, ...]
    """Record of the step of each particle."""
    _finished: Callable[[], Sequence[FinishedParticle]]
    _denoised: Callable[[], Tensor] | None
    _preview: Callable[[], Tensor] | None

    @property
    def last(self) -> bool:
        """True after the last step of the micro-batch."""
        return self.index == self.count - 1

    @property
    def denoised(self) -> Tensor | None:
        """Estimates x0_hat of the latents x_0, (B K, *shape). None for a one-step model without latents x_0.

        They belong to the latents before the step. Those of `svdd`, of `rbf` and of an iteration of a chain
        belong to the latents after it. After the last step they are the finished latents.
        """
        with _sampling():
            return None if self._denoised is None else self._denoised()

    @property
    def finished(self) -> tuple[FinishedParticle, ...]:
        """Finished particles with their images, on the CPU, after the last step."""
        return tuple(self._finished())

    def preview(self) -> Tensor:
        """Decode the estimates, in micro-batches. It takes the time of a decoder and counts no evaluation.

        Returns:
            Images (B K, 3, H, W) or videos (B K, 3, F, H, W), float32, on the device of the model. The values
            of an image are about in [0, 1].

        Raises:
            RuntimeError: the sampler shows no estimates.
        """
        if self._preview is None:
            raise RuntimeError(f"{self.records[0].method}: this sampler shows no estimates")
        with _sampling():
            return self._preview().float()


class SamplingRun:
    """Run of a sampler, advanced step by step; see `stepwise`.

    Iterate over it, or call `next`: each item is the `StepOutput` of one micro-batch. A run can be left after
    any step. Several runs do not disturb each other, also on one model. One thread at a time may use a run.

    After an exception in a step, also KeyboardInterrupt, the run cannot go on, because the step is
    incomplete. `load_state_dict` restores an earlier state.
    """

    @_sampling()
    def __init__(
        self,
        sampler: Sampler,
        model: FlowModel | OneStepModel,
        reward: Reward,
        prompts: str | Sequence[str],
        options: SamplerOptions | None,
        arguments: Mapping[str, Any],
    ) -> None:
        name = sampler.name
        self._sampler, self._arguments = sampler, dict(arguments)
        self._algorithm: Algorithm[Any] = sampler.algorithm(**arguments)
        check_model(name, model, FlowModel if sampler.kind == "flow" else OneStepModel)
        prompts = prompt_list(name, prompts)
        check_reward(name, reward)
        options = SamplerOptions() if options is None else options
        if not isinstance(options, SamplerOptions):
            raise TypeError(f"{name}: options must be a SamplerOptions, got {options!r}")
        self._model, self._options = model, options
        self._algorithm.prepare(model)
        at_once = 1 if sampler.alone else max(1, options.micro_batch // sampler.entries(arguments))
        records = self._algorithm.records
        self._new = partial(Particles, name, model, reward, prompts, options, at_once, records)
        self._particles = self._new()
        self._number, self._index = 0, 0  # of the micro-batch and of its next step
        self._batch: Batch | None = None
        self._state: Any = None
        self._step: Literal["made", "being made", "failed"] = "made"
        if options.latents is not None:
            self._particles.batch(0)  # checks their shape

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Arguments of the sampler, with defaults."""
        return MappingProxyType(self._arguments)

    @property
    def steps(self) -> int:
        """Number of steps of all micro-batches together, with those of chains."""
        return self._particles.batches * self._algorithm.records

    @property
    def steps_done(self) -> int:
        """Number of steps so far."""
        return self._number * self._algorithm.records + self._index

    @property
    def records(self) -> tuple[StepRecord, ...]:
        """Records of all steps so far."""
        return tuple(self._particles.records)

    @property
    def nfe(self) -> int:
        """Number of function evaluations so far, see `Result`."""
        return self._particles.meter.nfe

    def __iter__(self) -> "SamplingRun":
        return self

    def __next__(self) -> StepOutput:
        """Make the next step.

        Raises:
            StopIteration: all particles are finished.
            RuntimeError: a step before has failed, or is being made.
            ValueError, TypeError: the model or the reward returns a wrong shape or has no gradient.
            NonFiniteError: a reward, gradient or latent is not finite.
        """
        self._check_step()
        if self._number == self._particles.batches:
            raise StopIteration
        self._step = "being made"
        try:
            with _sampling():
                output = self._next()
        except BaseException:
            self._step = "failed"
            raise
        self._step = "made"
        return output

    def _next(self) -> StepOutput:
        if self._batch is None:
            self._batch = self._particles.batch(self._number)
            self._state = self._algorithm.begin(self._batch)
        batch, index = self._batch, self._index
        batch.begin_step()
        self._algorithm.step(batch, self._state, index)
        latents = self._state.x if batch.latents is None else batch.latents
        self._index += 1
        if self._index == self._algorithm.records:
            self._number, self._index, self._batch, self._state = self._number + 1, 0, None, None
        return StepOutput(
            batch.particles,
            tuple(batch.prompts),
            index,
            self._algorithm.records,
            latents,
            tuple(batch.made),
            batch.finished,
            batch.denoised,
            batch.preview,
        )

    def _check_step(self) -> None:
        """Raise RuntimeError if the present step is not complete."""
        name = self._sampler.name
        if self._step == "failed":
            raise RuntimeError(
                f"{name}: a step of this run has failed; load a state from before it, or begin a new run"
            )
        if self._step == "being made":
            raise RuntimeError(f"{name}: a step of this run is being made; wait until it is complete")

    def result(self) -> Result:
        """Make all steps that are left, and return the result of all particles.

        It shows a progress bar if the options ask for one. Errors: see `__next__`.
        """
        self._check_step()
        total = len(self._particles.prompts) * self._algorithm.records
        with progress_bar(self._options.progress, self._sampler.name, total) as bar:
            bar.update(len(self._particles.records))
            while self.steps_done < self.steps:  # nothing keeps the images of a step
                bar.update(len(next(self).records))
        with _sampling():
            return self._particles.result()

    @_sampling()
    def change(self, **arguments: Any) -> None:
        """Change arguments of the sampler from the next step on, such as the strength rho of `ntrk`.

        Raises:
            ValueError, TypeError: an argument is unknown, out of its range, or cannot change between steps,
                such as the number of steps. Nothing is changed then.
        """
        changed = {**self._arguments, **self._sampler.known(arguments)}
        fixed = sorted(set(arguments) & set(self._algorithm.fixed))
        if fixed:
            raise ValueError(f"{self._sampler.name}: {', '.join(fixed)} cannot change between steps")
        algorithm = self._sampler.algorithm(**changed)
        algorithm.prepare(self._model)
        self._arguments, self._algorithm = changed, algorithm

    @_sampling()
    def replace_latents(self, latents: Tensor) -> None:
        """Put other latents in place of those after the last step. The next step begins there.

        Args:
            latents: float32, of the shape that the latents have. They are copied.

        Raises:
            RuntimeError: no micro-batch is between two steps.
            ValueError: the shape is another one.
        """
        name = self._sampler.name
        self._check_step()
        if self._state is None:
            raise RuntimeError(f"{name}: latents can be replaced only between two steps of a micro-batch")
        if latents.shape != self._state.x.shape:
            raise ValueError(
                f"{name}: latents must be {tuple(self._state.x.shape)}, got {tuple(latents.shape)}"
            )
        self._state.put(latents.to(self._state.x, copy=True))

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the run needs to continue: dicts and lists of tensors, numbers and strings.

        `torch.save` writes it, and `torch.load` reads it with its default `weights_only=True`. Tensors are on
        the CPU. Model, reward, arguments and options are not part of it.

        Raises:
            RuntimeError: a step before has failed, or is being made.
        """
        self._check_step()
        particles, batch = self._particles, self._batch
        return {
            "run": self._identity,
            "micro_batch": self._number,
            "step": self._index,
            "nfe": particles.meter.nfe,
            "latents": to_plain(particles.latents),
            "rewards": list(particles.rewards),
            "weights": to_plain(particles.weights),
            "log_z": list(particles.log_z),
            "records": [asdict(record) for record in particles.records],
            "state": to_plain(self._state),
            "noise": None if batch is None else [stream.state_dict() for stream in batch.streams],
        }

    @_sampling()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, see `state_dict`.

        The run of the state must have the same sampler, prompts, seed, first particle, micro-batch, shape of
        latents, steps, schedule and start, and the same other arguments that cannot change between steps.
        The model, the reward, the other arguments and the other options are those of this run. Callbacks are
        called again for steps that are made again, and not for those in the state.

        Raises:
            ValueError: the state is that of another run, or no state of a run. Nothing is changed then.
        """
        name = self._sampler.name
        missing = _PARTS - set(state)
        if missing:
            raise ValueError(f"{name}: not a state of a run; it has no {', '.join(sorted(missing))}")
        for key, own in self._identity.items():
            if state["run"].get(key) != own:
                raise ValueError(
                    f"{name}: the state must be of a run with the same {key}, "
                    f"{shown(own)}, got {shown(state['run'].get(key))}"
                )
        particles = self._new()
        particles.latents = to_plain(state["latents"])
        particles.rewards, particles.log_z = list(state["rewards"]), list(state["log_z"])
        particles.weights = to_plain(state["weights"])
        particles.records = [StepRecord(**record) for record in state["records"]]
        particles.meter.nfe = state["nfe"]
        batch = None
        if state["noise"] is not None:
            batch = particles.batch(state["micro_batch"])
            for stream, place in zip(batch.streams, state["noise"], strict=True):
                stream.load_state_dict(place)
        device = torch.device(self._model.device)
        self._state = from_plain(self._algorithm.state_type | None, state["state"], device)
        self._particles, self._batch = particles, batch
        self._number, self._index = state["micro_batch"], state["step"]
        self._step = "made"

    @property
    def _identity(self) -> dict[str, Any]:
        """Facts in which a run and a state must agree, by the name in errors."""
        options = self._options
        return {
            "version": _VERSION,
            "sampler": self._sampler.name,
            "prompts": list(self._particles.prompts),
            "shape": list(self._model.shape),
            "seed": options.seed,
            "first_particle": options.first_particle,
            "micro_batch": options.micro_batch,
            **self._algorithm.identity,
        }


def stepwise(
    sampler: str | Callable[..., Result],
    model: FlowModel | OneStepModel,
    reward: Reward,
    prompts: str | Sequence[str],
    *,
    options: SamplerOptions | None = None,
    **arguments: Any,
) -> SamplingRun:
    """Begin a run of a sampler that the caller advances step by step.

        run = stepwise(ntrk, model, reward, ["a cat"], rho=0.1)
        for step in run:
            show(step.preview(), step.records)
            if cancelled():
                break

    Arguments are checked here. The first forward is made by the first step. `run.result()` makes all steps
    that are left. Every sampler but `best_of_n` is `stepwise(...).result()`.

    Args:
        sampler: sampler, such as `ntrk`, or its name.
        model: flow or one-step model, as the sampler needs.
        reward: function that judges the images.
        prompts: one prompt for each particle; a string is one particle.
        options: seed, micro-batches, first noise, callbacks; None means `SamplerOptions()`.
        **arguments: further arguments of the sampler.

    Raises:
        ValueError, TypeError: an argument is unknown, missing or out of its range, or the model does not fit.
    """
    name = sampler if isinstance(sampler, str) else getattr(sampler, "__name__", "")
    if not isinstance(sampler, str) and (name not in SAMPLERS or SAMPLERS[name].function is not sampler):
        raise TypeError(f"stepwise: sampler must be a sampler such as ntrk or its name, got {sampler!r}")
    check_choice("stepwise", "sampler", name, SAMPLERS)
    found = SAMPLERS[name]
    return SamplingRun(found, model, reward, prompts, options, found.completed(arguments))
