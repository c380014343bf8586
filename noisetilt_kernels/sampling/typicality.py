"""Typicality of the noise that a guided sampler used: is it still like Gaussian noise?

The steps of an unguided sampler draw independent noise. Guidance that pushes every step in the same direction
adds up. The noise of all steps together then has a spectrum with a high peak, and the image becomes a pattern
that the reward likes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COLLAPSED = 3.0
"""Peak above which the images of a run have probably lost their content, see `docs/rho.md`."""


def spectral_peaks(noise: Tensor) -> list[float]:
    """Return the highest value of each sample's periodogram, relative to that of Gaussian noise.

    Args:
        noise: (B, *shape); the periodogram is over the last two dimensions, or one for shape (N,).

    Returns:
        max |fft(z)|^2 / (n ln N) of each sample z of N values, with n values in each transform. About 1
        for standard normal noise of any size.
    """
    dims = tuple(range(max(1, noise.dim() - 2), noise.dim()))
    size = math.prod(noise.shape[dim] for dim in dims)
    peaks = []
    for sample in noise.double().split(1):  # one at a time: batches must not change a sample's bits
        power = torch.fft.fftn(sample, dim=dims).abs().square() / size
        peaks.append(float(power.max()) / max(1.0, math.log(sample.numel())))
    return peaks


@dataclass
class TotalNoise:
    """Sum of the noise that the steps of a micro-batch add, scaled to variance 1 for independent noise.

    Args:
        sum: the sum of each sample, (B, *shape). Resampling permutes it.
        variance: variance of a value of the sum, if the noise is independent.
    """

    sum: Tensor
    variance: float = 0.0

    @staticmethod
    def like(x: Tensor) -> "TotalNoise":
        """Return the sum of no steps, for latents x (B, *shape)."""
        return TotalNoise(torch.zeros_like(x))

    def add(self, added: Tensor, sigma: float) -> None:
        """Add what a step added to the latents (B, *shape). Unguided, it has the standard deviation sigma."""
        self.sum += added
        self.variance += sigma**2

    def peaks(self, samples: Sequence[int] | None = None) -> list[float] | None:
        """Return the peak of each sample, or of the given ones; None if no step had noise."""
        chosen = self.sum if samples is None else self.sum[list(samples)]
        return spectral_peaks(chosen / math.sqrt(self.variance)) if self.variance else None
