"""Reproducible noise: one stream for each particle."""

from collections.abc import Sequence
from functools import cached_property

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
    """

    def __init__(self, seed: int, particle: int, shape: Sequence[int]) -> None:
        self._seeds = seed, particle
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
        return torch.from_numpy(self._generator.standard_normal((count, *self._shape), dtype=np.float32))
