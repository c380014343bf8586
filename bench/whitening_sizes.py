"""Whiteness of W with the preset "auto" at many sizes of latents, printed as Markdown.

    python -m bench.whitening_sizes

Sizes that the tiles divide stand beside sizes that they do not divide, odd sides, and a plane of one row.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import noisetilt_kernels as nt
from noisetilt_kernels.config import describe, sample_of

from .inputs import gaussian, power_law

SIZES = [
    (16, 160, 160),
    (16, 166, 166),
    (16, 128, 240),
    (16, 134, 240),
    (16, 96, 170),
    (4, 136, 240),
    (16, 128, 128),
    (32, 128, 128),
    (32, 94, 126),
    (128, 64, 64),
    (16, 127, 121),
    (16, 131, 128),
    (16, 1, 4099),
    (16, 21, 60, 104),
    (16, 21, 90, 160),
    (48, 31, 44, 80),
]
LOWEST = 4  # wavenumber, in periods of a plane
SEEDS, MOST_VALUES = 2, 1_000_000  # larger latents have one seed


def sinusoids(shape: Sequence[int], seed: int) -> Tensor:
    """One plane wave for each channel (C, H, W), with 30 % noise."""
    c, h, w = shape
    frequency = 0.3 * torch.rand(2, c, 1, 1, generator=torch.Generator().manual_seed(seed))
    phase = frequency[0] * torch.arange(h)[:, None] + frequency[1] * torch.arange(w)
    return torch.sin(2 * math.pi * phase) + 0.3 * gaussian(shape, seed=seed)


def hot_channel(shape: Sequence[int], seed: int) -> Tensor:
    """Channels of weak noise, one of them 5000 times stronger."""
    x = 1e-3 * gaussian(shape, seed=seed)
    x[shape[0] // 2] *= 5e3
    return x


def spikes(shape: Sequence[int], seed: int) -> Tensor:
    """0.1 % normal values among zeros."""
    there = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 1e-3
    return there * gaussian(shape, seed=seed + 1)


STRUCTURES: dict[str, Callable[[Sequence[int], int], Tensor]] = {
    "1/k": lambda shape, seed: power_law(1.0, shape, seed).float(),
    "sinusoids": sinusoids,
    "hot channel": hot_channel,
    "spikes": spikes,
}


def low_band(x: Tensor) -> float:
    """Mean power of the wavenumbers up to `LOWEST` but 0 in channels (C, H, W). Noise has 1."""
    h, w = x.shape[1:]
    power = torch.fft.fft2(x.double(), norm="ortho").abs().square().mean(dim=0)
    k = torch.hypot(torch.fft.fftfreq(h)[:, None] * h, torch.fft.fftfreq(w) * w)
    return power[(k > 0) & (k <= LOWEST)].mean().item()


def cosine(x: Tensor, y: Tensor) -> float:
    return torch.cosine_similarity(x.flatten().double(), y.flatten().double(), dim=0).item()


def row(size: Sequence[int]) -> list[str]:
    """Cells of a size (C, H, W) or (C, F, H, W)."""
    shape = (math.prod(size[:-2]), *size[-2:])
    sample = sample_of("whitening_sizes", shape)
    config = nt.preset("auto", (1, *size) if len(size) == 4 else size)
    seeds = range(SEEDS if sample.size <= MOST_VALUES else 1)
    noise = [gaussian(shape, seed=seed) for seed in seeds]
    lost = max(1 - cosine(x, nt.whiten(x, config)) for x in noise)
    low, kept = [], []
    for structure in STRUCTURES.values():
        pairs = [(x, nt.whiten(x, config)) for x in (structure(shape, seed) for seed in seeds)]
        low.append(sum(low_band(y) for _, y in pairs) / len(pairs))
        kept.append(sum(cosine(x, y) for x, y in pairs) / len(pairs))
    tiles = describe(config, sample).split("; ")[1].removeprefix("tiles ")
    measured = [f"{power:.2f}, {cos:.2f}" for power, cos in zip(low, kept, strict=True)]
    return ["x".join(map(str, size)), tiles, *measured, f"{lost:.1e}"]


def main() -> None:
    print("Power up to wavenumber 4 (noise: 1), and cosine between input and result.\n")
    print(f"| latents | tiles | {' | '.join(STRUCTURES)} | noise: 1 - cosine |")
    print("|---" * (len(STRUCTURES) + 3) + "|")
    for size in SIZES:
        print(f"| {' | '.join(row(size))} |", flush=True)


if __name__ == "__main__":
    main()
