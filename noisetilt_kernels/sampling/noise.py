"""Reproducible noise: a stream for each particle."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class ParticleNoise:
    """The standard normal draws of one particle, float32, made on the CPU.

    They depend on the seed and the particle's number alone, and so on no device, no micro-batch and no other
    particle. (torch's CPU generator is seeded by 32 bits, of which many particles could share the same;
    numpy's by all of them.)

    Args:
        seed: at least 0.
        particle: at least 0.
        shape: of one draw.
    """

    def __init__(self, seed: int, particle: int, shape: Sequence[int]) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, particle])))
        self._shape = tuple(shape)

    def draw(self, count: int = 1) -> Tensor:
        """The next `count` draws, (count, *shape); the same as one after another."""
        return torch.from_numpy(self._generator.standard_normal((count, *self._shape), dtype=np.float32))
