"""Standardised perturbation (x_{t-delta} - mu) / sigma (NoiseTilt eq. 5): typical with NTRK, not with DPS.

A statistic is typical if it lies in an interval that standard normal noise leaves once in 10,000 times.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from gaussian_flows import LatentFlow, Spy, brightness, left_half
from scipy import stats
from torch import Tensor

from noisetilt_kernels import sampling
from noisetilt_kernels.sampling import Result, Reward, SamplerOptions, Schedule
from noisetilt_kernels.sampling.steps import mean, plan_steps

ALPHA = 1e-4
SHAPE = (4, 32, 32)
STEPS = 6
PARTICLES = 4


def perturbations(sampler: Callable[..., Result], reward: Reward, **arguments: Any) -> Tensor:
    """Return the perturbations of all steps and particles, recovered from the inputs of the model.

    They are float64 (n, C, H, W).
    """
    # A bent flow: the gradient at t = 1 of a linear flow is zero.
    model, schedule = LatentFlow(SHAPE, bend=0.1), Schedule("linear")
    spy, options = Spy(model), SamplerOptions(seed=0, micro_batch=PARTICLES)
    sampler(spy, reward, [""] * PARTICLES, steps=STEPS, schedule=schedule, options=options, **arguments)
    *moves, _ = plan_steps("test", model, STEPS, schedule)
    visited = [x.double() for x, *_ in spy.calls]
    return torch.cat(
        [
            (after - mean(x, model.velocity(x, step.t, []), step)) / step.sigma
            for step, (x, after) in zip(moves, pairwise(visited), strict=True)
        ]
    )


# ---- statistics of one perturbation (C, H, W) ----


def inside(values: Tensor, law: Any) -> bool:
    """Return True if all values lie in the interval of the distribution, each with its share of ALPHA."""
    share = ALPHA / 2 / values.numel()
    return bool(law.ppf(share) <= float(values.min()) and float(values.max()) <= law.isf(share))


def tiles_of(z: Tensor) -> Tensor:
    """Return the 8x8 tiles, (P, 64)."""
    return z.unflatten(2, (-1, 8)).unflatten(1, (-1, 8)).transpose(2, 3).flatten(3).flatten(0, 2)


def tile_means_of(z: Tensor) -> Tensor:
    """Return the scaled means of the tiles, (P,), standard normal for noise."""
    return tiles_of(z).mean(dim=1) * 8


def periodogram_of(z: Tensor) -> Tensor:
    """Return |fft2|^2 of every channel, with mean 1 for noise."""
    return torch.fft.fft2(z, norm="ortho").abs().square()


def lowest_frequencies_of(z: Tensor) -> Tensor:
    """Return the energy of every channel in the nine lowest frequencies, (C,), chi2(9) for noise.

    Frequency zero contributes chi2(1). The others form four pairs of equal values; each pair contributes
    chi2(2).
    """
    rows, columns = torch.tensor([[0, 0, 1, 1, 1], [0, 1, -1, 0, 1]])
    return periodogram_of(z)[:, rows, columns] @ torch.tensor([1.0, 2.0, 2.0, 2.0, 2.0], dtype=z.dtype)


# Statistics of extremes. W makes them typical for every gradient.
EXTREMES: dict[str, Callable[[Tensor], bool]] = {
    "norm": lambda z: inside(z.square().sum(), stats.chi2(z.numel())),
    "tile means": lambda z: inside(tile_means_of(z), stats.norm),
    "tile energies": lambda z: inside(63 * tiles_of(z).var(dim=1), stats.chi2(63)),
    "peak of the periodogram": lambda z: float(periodogram_of(z).max()) < 60,  # DESIGN section 5
}

# Statistics of sums. Noise has typical ones, but W of a strongly structured gradient alone need not: every
# rank may lie at the same end of its interval.
SUMS: dict[str, Callable[[Tensor], bool]] = {
    "tile means together": lambda z: inside(tile_means_of(z).square().sum(), stats.chi2(len(tiles_of(z)))),
    "low frequencies": lambda z: inside(lowest_frequencies_of(z).sum(), stats.chi2(9 * len(z))),
    "peak of the periodogram, limit of noise": lambda z: (
        float(periodogram_of(z).max()) < math.log(z.numel() / 2 / ALPHA)
    ),
}


def shares(statistics: dict[str, Callable[[Tensor], bool]], z: Tensor) -> dict[str, float]:
    """Return, for each statistic, the share of perturbations in which it is typical."""
    return {name: sum(map(typical, z)) / len(z) for name, typical in statistics.items()}


def all_typical(statistics: dict[str, Callable[[Tensor], bool]], z: Tensor) -> bool:
    return set(shares(statistics, z).values()) == {1.0}


REWARDS = {"left half": left_half, "brightness": brightness}


@pytest.mark.parametrize("rho", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("reward", REWARDS)
def test_perturbations_of_ntrk_are_typical_at_every_strength(reward: str, rho: float) -> None:
    z = perturbations(sampling.ntrk, REWARDS[reward], rho=rho)
    assert all_typical(EXTREMES, z), shares(EXTREMES, z)
    if rho < 1:
        assert all_typical(SUMS, z), shares(SUMS, z)


@pytest.mark.parametrize("reward", REWARDS)
def test_perturbations_of_dps_leave_every_interval_as_strength_grows(reward: str) -> None:
    statistics = EXTREMES | SUMS
    shares_of = [
        shares(statistics, perturbations(sampling.dps, REWARDS[reward], strength=strength))
        for strength in (0.0, 1e3, 1e4, 1e5)
    ]
    for name in statistics:
        course = [share[name] for share in shares_of]
        assert course[0] == 1
        assert course == sorted(course, reverse=True), f"{name}: {course}"
        assert course[-1] < 1, f"{name}: {course}"
    assert shares_of[-1]["norm"] == 0
    for name in ("tile means", "peak of the periodogram", *SUMS):
        assert shares_of[-1][name] <= 0.2, name


@pytest.mark.parametrize("operator", ["wgnc", "norm", "identity"])
def test_perturbations_of_other_operators_are_not_typical(operator: str) -> None:
    """The tests above can fail: at rho = 0.3 every other operator leaves an interval that W respects."""
    z = perturbations(sampling.ntrk, left_half, rho=0.3, operator=operator)
    assert not all_typical(EXTREMES, z)
