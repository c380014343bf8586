"""Options that every sampler takes."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..checks import check_choice, check_integer, shown
from .records import StepRecord
from .result import FinishedParticle

NON_FINITE = ("raise", "plain_noise")
"""Reactions to a reward or gradient that is not finite."""


@dataclass(frozen=True)
class SamplerOptions:
    """Options that every sampler takes: seed, batch size, error handling, callbacks.

    Args:
        seed: seed of all random numbers, at least 0. Particle p draws from its own stream, made from
            (seed, p). Its noise depends on nothing else. Its result also depends on rounding in the network,
            so on the micro-batch and the number of threads; W amplifies rounding near ties.
        micro_batch: number of batch entries in one call of the model, at least 1.
        first_particle: number of the first particle, at least 0. An interrupted run can continue from it.
        non_finite: "raise" stops at a reward or gradient that is not finite. "plain_noise" leaves that step
            of that particle unguided and records the reason; the reward of a finished particle may then be
            NaN.
        latents: first noise of the particles in place of random noise, with values like those of N(0, 1);
            (P, *shape) for P particles, or (1, *shape) for all of them. A flow begins there at t = 1, and a
            one-step model optimises this noise. With `FromImage` it is the noise that is added to the image.
            All copies of a particle begin there. `rbf` takes it as its first start point only. The noise of
            later steps stays that of the seed.
        noise: function of (particle, draw) -> noise (*shape), in place of the noise of the seed. Draws are
            counted from 0; K copies take K draws in each step. The same arguments must give the same noise.
            Decisions, such as those of resampling, still come from the seed.
        on_finished: function called with each `FinishedParticle` as soon as its micro-batch is complete. The
            samplers let KeyboardInterrupt pass, so a caller that saves particles here loses none of them on
            Ctrl-C.
        on_record: function called with each new `StepRecord`; `RecordWriter.write` appends it to a file.
        progress: show a progress bar.

    Raises:
        ValueError, TypeError: an argument is out of its range.
    """

    seed: int = 0
    micro_batch: int = 1
    first_particle: int = 0
    non_finite: str = "raise"
    latents: Tensor | None = field(default=None, compare=False)
    noise: Callable[[int, int], Tensor] | None = None
    on_finished: Callable[[FinishedParticle], None] | None = None
    on_record: Callable[[StepRecord], None] | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        check_integer("SamplerOptions", "seed", self.seed, 0)
        check_integer("SamplerOptions", "micro_batch", self.micro_batch, 1)
        check_integer("SamplerOptions", "first_particle", self.first_particle, 0)
        check_choice("SamplerOptions", "non_finite", self.non_finite, NON_FINITE)
        if self.latents is not None and not isinstance(self.latents, Tensor):
            raise TypeError(f"SamplerOptions: latents must be a tensor or None, got {shown(self.latents)}")
        if self.latents is not None and not bool(self.latents.isfinite().all()):
            raise ValueError("SamplerOptions: latents must be finite")
        for name in ("noise", "on_finished", "on_record"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"SamplerOptions: {name} must be callable or None, got {value!r}")
