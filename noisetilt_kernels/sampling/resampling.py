"""Unbiased resampling of K weighted copies: how many children each of them gets.

A share is K times a weight that is normalised to the sum 1. A copy gets its share rounded up or down, and on
average exactly its share. Equal weights give one child each.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Literal, get_args

from ..checks import check_choice

Rounding = Callable[[Sequence[float], Callable[[], float]], list[int]]
"""Function of the shares (K,) and of a function that draws a uniform number in [0, 1) -> children (K,)."""


def systematic(shares: Sequence[float], uniform: Callable[[], float]) -> list[int]:
    """Return the number of the points u, u + 1, ..., u + K - 1 in each share of [0, K]. Draws one number."""
    u = uniform()
    ends = [_snapped(end) for end in accumulate(shares, initial=0.0)]
    ends[-1] = len(shares)
    below = [math.floor(end) + (end - math.floor(end) > u) for end in ends]
    return [after - before for before, after in pairwise(below)]


def ssp(shares: Sequence[float], uniform: Callable[[], float]) -> list[int]:
    """Return the shares rounded by the Srinivasan sampling process, which draws K - 1 numbers.

    Two copies trade the fractions of their shares until one of the fractions is 0 or 1, at random so that
    neither gains on average. The other copy goes on with the next one.
    """
    children = [math.floor(_snapped(share)) for share in shares]
    rest = [_snapped(share) - floor for share, floor in zip(shares, children, strict=True)]
    one = 0
    for other in range(1, len(rest)):
        gain = min(1 - rest[one], rest[other])
        loss = min(rest[one], 1 - rest[other])
        change = gain if uniform() * (gain + loss) < loss else -loss
        rest[one] = _snapped(rest[one] + change)
        rest[other] = _snapped(rest[other] - change)
        if rest[one] in (0, 1):
            one = other
    return [floor + round(fraction) for floor, fraction in zip(children, rest, strict=True)]


def _snapped(value: float) -> float:
    """Return the value, or the integer that it is up to rounding."""
    return round(value) if abs(value - round(value)) < 1e-9 else value


Resampling = Literal["systematic", "ssp"]
"""Name of a resampling."""

_ROUNDINGS: dict[str, Rounding] = {"systematic": systematic, "ssp": ssp}


def rounding_by_name(function: str, name: str) -> Rounding:
    """Return the rounding of a resampling.

    Raises:
        ValueError: the name is unknown.
    """
    check_choice(function, "resampling", name, get_args(Resampling))
    return _ROUNDINGS[name]
