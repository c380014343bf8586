"""Confidence tables: lower and upper bounds of two-level order statistics."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor

from . import special

MOST_DF = 2**20
"""Largest number of degrees of freedom, see `ChiSquare`."""


@dataclass(frozen=True)
class Normal:
    """Standard normal reference distribution N(0, 1)."""

    def ppf(self, p: Tensor) -> Tensor:
        """Quantile of the lower-tail probability `p`, float64 on the CPU."""
        return special.normal_quantile(p)

    def isf(self, p: Tensor) -> Tensor:
        """Quantile of the upper-tail probability `p`, float64 on the CPU."""
        return -special.normal_quantile(p)


@dataclass(frozen=True)
class ChiSquare:
    """Chi-square reference distribution with `df` degrees of freedom, an integer from 1 to 2^20.

    Above, scipy's quantiles lose digits: at 2^24 they are wrong by 0.004 standard deviations.
    """

    df: int

    def __post_init__(self) -> None:
        try:
            df = int(index(self.df))
        except TypeError:
            raise TypeError(f"ChiSquare: df must be an integer, got {self.df!r}") from None
        if not 1 <= df <= MOST_DF:
            raise ValueError(f"ChiSquare: df must be an integer from 1 to {MOST_DF}, got {df}")
        object.__setattr__(self, "df", df)

    def ppf(self, p: Tensor) -> Tensor:
        """Quantile of the lower-tail probability `p`, float64 on the CPU."""
        return 2.0 * special.gamma_quantile(self.df / 2, p)

    def isf(self, p: Tensor) -> Tensor:
        """Quantile of the upper-tail probability `p`, float64 on the CPU."""
        return 2.0 * special.gamma_upper_quantile(self.df / 2, p)


Reference = Normal | ChiSquare
NORMAL = Normal()

DEFAULT_ALPHA = 1e-3
"""Significance level: the confidence level is 1 - alpha."""

_ROWS_PER_TASK = 8192  # of long tables, filled by a thread pool: scipy's functions release the GIL


@torch.inference_mode(False)  # threads write into the tensors, and have a mode of their own
def confidence_table(
    num_chunks: int, chunk_size: int, alpha: float = DEFAULT_ALPHA, reference: Reference = NORMAL
) -> tuple[Tensor, Tensor]:
    """Table `(lower, upper)` of `project_2os`, each (num_chunks, chunk_size), float64 (DESIGN section 2).

    With M chunks of D values, rank r = 1..M across chunks and j = 1..D inside a chunk, the bounds are

        q_lo   = I^-1(alpha/2; r, M-r+1)           q_hi   = I^-1(1-alpha/2; r, M-r+1)
        L[r,j] = F^-1(I^-1(q_lo; j, D-j+1))        U[r,j] = F^-1(I^-1(q_hi; j, D-j+1))

    where I^-1 is the Beta quantile and F the reference distribution. The upper bounds are computed from
    upper-tail probabilities, because 1-q would lose digits. By the reflection of the Beta distribution, 1 -
    I^-1(q_hi; j, D-j+1) at rank r equals I^-1(q_lo; D-j+1, j) at rank M+1-r. Therefore one array of
    probabilities, reversed in both dimensions, gives the upper bounds too.
    """
    numbers: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    rank_in_chunk = torch.arange(1, chunk_size + 1, **numbers)
    probability = torch.empty(num_chunks, chunk_size, **numbers)
    lower, upper = torch.empty_like(probability), torch.empty_like(probability)

    def fill_probability(start: int) -> None:
        rank = torch.arange(start + 1, min(start + _ROWS_PER_TASK, num_chunks) + 1, **numbers)
        q_lo = special.beta_quantile(rank, num_chunks - rank + 1, alpha / 2)
        probability[start : start + len(rank)] = special.beta_quantile(
            rank_in_chunk, chunk_size - rank_in_chunk + 1, q_lo[:, None]
        )

    def fill_bounds(start: int) -> None:
        stop = min(start + _ROWS_PER_TASK, num_chunks)
        lower[start:stop] = reference.ppf(probability[start:stop])
        upper[start:stop] = reference.isf(probability[num_chunks - stop : num_chunks - start].flip(0, 1))

    starts = range(0, num_chunks, _ROWS_PER_TASK)
    if len(starts) == 1:
        fill_probability(0)
        fill_bounds(0)
    else:
        with ThreadPoolExecutor() as pool:
            list(pool.map(fill_probability, starts))
            list(pool.map(fill_bounds, starts))
    return lower, upper
