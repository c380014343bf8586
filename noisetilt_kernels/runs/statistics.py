"""Means and their confidence intervals."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """Mean of some values with its 95 % confidence interval.

    Attributes:
        mean: mean of the finite values, NaN if there are none.
        half_width: half of the width of the confidence interval by Student's t; NaN for fewer than two
            values.
        count: number of finite values.
        yes_or_no: True if every finite value is 0 or 1, as of a judge that answers yes or no.
    """

    mean: float
    half_width: float
    count: int
    yes_or_no: bool = False

    def __format__(self, sign: str) -> str:
        """Format with two digits of the half width; "+" also shows the sign of a positive mean."""
        if not math.isfinite(self.half_width) or self.half_width == 0:
            return f"{self.mean:{sign}.4g}"
        digits = min(9, max(0, 1 - math.floor(math.log10(self.half_width))))
        return f"{self.mean:{sign}.{digits}f} \N{PLUS-MINUS SIGN} {self.half_width:.{digits}f}"

    @property
    def share(self) -> str:
        """Text such as "6 of 8 (0.75 ± 0.39)" for answers yes or no; the mean only if answers differ."""
        share = f"{round(self.mean * self.count)} of {self.count}"
        return f"{share} ({self})" if self.half_width > 0 else share

    def scaled(self, factor: float) -> "Estimate":
        """Return the estimate of the values multiplied by a factor."""
        answers = self.yes_or_no and factor == 1
        return Estimate(self.mean * factor, self.half_width * abs(factor), self.count, answers)

    def __str__(self) -> str:
        return format(self, "")

    def to_json(self) -> dict[str, float | int | None]:
        """Return the values as a JSON object, with null for NaN."""
        return {
            "mean": None if math.isnan(self.mean) else self.mean,
            "half_width": None if math.isnan(self.half_width) else self.half_width,
            "count": self.count,
        }


def estimate(values: Iterable[float]) -> Estimate:
    """Return the mean of the finite values with its 95 % confidence interval."""
    array = np.asarray(list(values), dtype=np.float64)
    finite = array[np.isfinite(array)]
    n = len(finite)
    mean = float(finite.mean()) if n else math.nan
    half_width = float(stats.t.ppf(0.975, n - 1) * stats.sem(finite)) if n > 1 else math.nan
    return Estimate(mean, half_width, n, n > 0 and bool(np.isin(finite, (0, 1)).all()))
