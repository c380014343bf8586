"""Distance that W moves noise at several significance levels, printed as Markdown (DESIGN section 2).

    python -m bench.confidence_level

The NTRK paper (figure 15) shows one noise sample 16x64x64. The norm projection moves it by 1.98, so its norm
differs from sqrt(N) by 1.98. W moves it by 0.77, with cosine 0.999996. Here noise is scaled to such a norm.
The level whose distances surround 0.77 is the default.
"""

import math

import torch
from torch import Tensor

import noisetilt_kernels as nt

from .inputs import FLUX, gaussian

NORM_ERROR = 1.98
ALPHAS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SEEDS = 100


def moved(samples: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Distances and cosines (B,) between samples (B, C, H, W) and W of them."""
    whitened = nt.whiten(samples, "flux", alpha=alpha).flatten(1)
    samples = samples.flatten(1)
    return (whitened - samples).norm(dim=1), torch.cosine_similarity(whitened, samples, dim=1)


def spread(values: Tensor) -> str:
    low, middle, high = values.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=values.dtype)).tolist()
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    noise = torch.stack([gaussian(FLUX, torch.float64, seed) for seed in range(SEEDS)])
    norm, radius = noise.flatten(1).norm(dim=1)[:, None, None, None], math.sqrt(math.prod(FLUX))
    inputs = {
        f"norm {NORM_ERROR} too small": noise * (radius - NORM_ERROR) / norm,
        f"norm {NORM_ERROR} too large": noise * (radius + NORM_ERROR) / norm,
        "noise": noise,
    }
    print("Distance |W(x) - x|: median (80 % of the samples). The paper has 0.77 for one sample.\n")
    print(f"| alpha | {' | '.join(inputs)} | lowest cosine of noise |")
    print("|---" * (len(inputs) + 2) + "|")
    for alpha in ALPHAS:
        results = [moved(x, alpha) for x in inputs.values()]
        cells = [spread(distance) for distance, _ in results]
        print(f"| {alpha:g} | {' | '.join(cells)} | {results[-1][1].min().item():.7f} |", flush=True)


if __name__ == "__main__":
    main()
