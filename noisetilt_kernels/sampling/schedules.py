"""Diffusion coefficients g(t): how much noise the reverse SDE injects at which time (DESIGN section 7).

Every g leaves the marginals of the flow as they are; they differ in how much of the trajectory is noise that
a sampler can choose or tilt, and in the discretisation error that they cost.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..checks import check_choice, check_number

LATEST = 0.96
"""Flow-GRPO's coefficient is taken at min(t, LATEST), since it is infinite at t = 1.

0.96 is the second time of 25 uniform steps, which is what Flow-GRPO itself takes at t = 1 there. But it is a
constant and not the second time of whatever steps there are: were the coefficient to grow as steps get
shorter, the variance g^2 of the first step times its length would never shrink, and the marginals would stay
wrong however many steps there are.
"""


def _flow_grpo(t: float) -> float:
    t = min(t, LATEST)
    return math.sqrt(t / (1 - t))


class _Shape(NamedTuple):
    g: Callable[[float], float]
    scale: float  # by default


# The scales by default are as large as 25 uniform steps bear: the variance of Gaussian flows stays within a
# seventh of what it should be on the way, and ends within a tenth. 0.7 is Flow-GRPO's own.
_SHAPES = {
    "constant": _Shape(lambda t: 1.0, 0.7),
    "linear": _Shape(lambda t: t, 2.0),
    "quadratic": _Shape(lambda t: t * t, 3.0),
    "flow-grpo": _Shape(_flow_grpo, 0.7),
}

SCHEDULES = tuple(_SHAPES)
"""Names of the schedules."""


@dataclass(frozen=True)
class Schedule:
    """g(t) = scale * shape(t), with the shape named: 1, t, t^2, or sqrt(t / (1-t)).

    Args:
        name: "constant", "linear", "quadratic" or "flow-grpo".
        scale: at least 0; 0 is the ODE. None takes the shape's own: 0.7, 2, 3 and 0.7.

    Raises:
        ValueError, TypeError: unknown name, or a scale that is negative or no number.
    """

    name: str
    scale: float | None = None

    def __post_init__(self) -> None:
        check_choice("Schedule", "name", self.name, SCHEDULES)
        if self.scale is None:
            object.__setattr__(self, "scale", _SHAPES[self.name].scale)
        check_number("Schedule", "scale", self.scale, 0)

    def g(self, t: float) -> float:
        """The diffusion coefficient at time t in (0, 1]."""
        assert self.scale is not None
        return self.scale * _SHAPES[self.name].g(t)

    def sigma(self, t: float, delta: float) -> float:
        """Standard deviation g(t) sqrt(delta) of the noise of a step of length delta from time t."""
        return self.g(t) * math.sqrt(delta)


def as_schedule(function: str, schedule: str | Schedule) -> Schedule:
    """A schedule given by name or as itself.

    Raises:
        ValueError, TypeError: an unknown name, or neither.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if not isinstance(schedule, str):
        raise TypeError(f"{function}: schedule must be a name or a Schedule, got {schedule!r}")
    check_choice(function, "schedule", schedule, SCHEDULES)
    return Schedule(schedule)
