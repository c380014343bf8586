"""Reproducible noise: one stream for each particle."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor


class ParticleNoise:
    """Stream of standard normal draws of one particle, float32, made on the CPU.

    The draws depend on the seed and the number of the particle only. The device, the micro-batch and the
    other particles do not change them. The generator is NumPy's, which uses every bit of the seed; torch's
    CPU generator uses 32 bits, so that particles could share a stream.

    Args:
        seed: seed of all particles, at least 0.
        particle: number of the particle, at least 0.
        shape: shape of one draw.
        first: first draw, (*shape), in place of that of the stream. The other draws stay the same. Several
            draws made at once, at first, are equal.
        source: function of (particle, number of the draw from 0) -> draw (*shape), in place of the stream.

    Raises:
        ValueError: a draw of `source` has another shape.
    """

    def __init__(
        self,
        seed: int,
        particle: int,
        shape: Sequence[int],
        first: Tensor | None = None,
        source: Callable[[int, int], Tensor] | None = None,
    ) -> None:
        self._seeds = seed, particle
        self._first, self._source, self._drawn = first, source, 0
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, particle])))
        self._shape = tuple(shape)

    @cached_property
    def choices(self) -> np.random.Generator:
        """Generator of everything that is not noise, such as a decision or a permutation.

        It has a stream of its own, so that such a draw does not move the noise.
        """
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self._seeds, spawn_key=(1,))))

    def draw(self, count: int = 1) -> Tensor:
        """Return the next `count` draws, (count, *shape). Draws made one at a time are the same."""
        numbers = range(self._drawn, self._drawn + count)
        self._drawn += count
        if self._source is None:
            drawn = torch.from_numpy(self._generator.standard_normal((count, *self._shape), dtype=np.float32))
        else:
            made = [self._from_source(number) for number in numbers]
            drawn = torch.stack(made) if made else torch.empty(0, *self._shape)
        if numbers.start == 0 and self._first is not None:
            drawn[:] = self._first
        return drawn

    def _from_source(self, number: int) -> Tensor:
        assert self._source is not None
        drawn = torch.as_tensor(self._source(self._seeds[1], number))
        if drawn.shape != self._shape:
            raise ValueError(
                f"SamplerOptions: noise(particle, draw) must return {self._shape}, got {tuple(drawn.shape)}"
            )
        return drawn.detach().to(torch.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the stream, as plain numbers and names."""
        return {
            "drawn": self._drawn,
            "noise": self._generator.bit_generator.state,
            "choices": self.choices.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place in the stream, from `state_dict`."""
        self._drawn = state["drawn"]
        self._generator.bit_generator.state = state["noise"]
        self.choices.bit_generator.state = state["choices"]
