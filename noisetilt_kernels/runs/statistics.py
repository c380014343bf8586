"""Means and their confidence intervals."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """The mean of some values and how sure it is.

    Attributes:
        mean: of the finite values, NaN where there are none.
        half_width: of the 95 % confidence interval of the mean, by Student's t; NaN for fewer than two values.
        count: finite values.
    """

    mean: float
    half_width: float
    count: int

    def __format__(self, sign: str) -> str:
        """With as many digits as the interval leaves; "+" shows the sign of a positive mean."""
        if not math.isfinite(self.half_width) or self.half_width == 0:
            return f"{self.mean:{sign}.4g}"
        digits = min(9, max(0, 1 - math.floor(math.log10(self.half_width))))
        return f"{self.mean:{sign}.{digits}f} \N{PLUS-MINUS SIGN} {self.half_width:.{digits}f}"

    def __str__(self) -> str:
        return format(self, "")

    def to_json(self) -> dict[str, float | int | None]:
        """NaN becomes null."""
        return {
            "mean": None if math.isnan(self.mean) else self.mean,
            "half_width": None if math.isnan(self.half_width) else self.half_width,
            "count": self.count,
        }


def estimate(values: Iterable[float]) -> Estimate:
    """Mean of the finite values with its 95 % confidence interval."""
    every = np.asarray(list(values), dtype=np.float64)
    finite = every[np.isfinite(every)]
    n = len(finite)
    mean = float(finite.mean()) if n else math.nan
    half_width = float(stats.t.ppf(0.975, n - 1) * stats.sem(finite)) if n > 1 else math.nan
    return Estimate(mean, half_width, n)
