"""Diffusion coefficients g(t): strength of the noise of the reverse SDE over time (DESIGN section 7).

Every g keeps the marginals of the flow. The schedules differ in the amount of noise, which samplers choose or
tilt, and in the discretisation error.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..checks import check_choice, check_number
from .vp import VP_SHAPES, VPShape

LATEST = 0.96
"""Flow-GRPO's coefficient is evaluated at min(t, LATEST), because it is infinite at t = 1.

0.96 is the second time of 25 uniform steps, where Flow-GRPO itself evaluates it for the first step. It is a
constant, and does not follow the number of steps: otherwise g^2 times the length of the first step would not
shrink as steps get shorter, and the marginals would stay wrong for any number of steps.
"""


def _flow_grpo(t: float) -> float:
    t = min(t, LATEST)
    return math.sqrt(t / (1 - t))


class _Shape(NamedTuple):
    g: Callable[[float], float]
    default_scale: float


# The default scales are as large as 25 uniform steps allow: the variance of Gaussian flows stays within a
# seventh of the exact one along the way, and ends within a tenth. 0.7 is Flow-GRPO's own scale.
_SHAPES = {
    "constant": _Shape(lambda t: 1.0, 0.7),
    "linear": _Shape(lambda t: t, 2.0),
    "quadratic": _Shape(lambda t: t * t, 3.0),
    "flow-grpo": _Shape(_flow_grpo, 0.7),
}

SCHEDULES = tuple(_SHAPES)
"""Names of the schedules g(t) in the time of the flow."""

VP_SCHEDULES = tuple(VP_SHAPES)
"""Names of the schedules in VP time, which have times of their own; see `vp`."""


@dataclass(frozen=True)
class Schedule:
    """Diffusion coefficient g(t) = scale * shape(t).

    The shapes "constant", "linear", "quadratic" and "flow-grpo" are 1, t, t^2 and sqrt(t / (1-t)), with the
    times of the model. "vp" and "vp-quadratic" have other times, even in the VP time rho of diffusion models:
    rho_i = 1 - i/n with the shape 2 rho - rho^2 (Psi-Sampler), or sqrt(1 - (i/n)^2) with rho^2 (RBF).

    Args:
        name: "constant", "linear", "quadratic", "flow-grpo", "vp" or "vp-quadratic".
        scale: factor of the schedule, at least 0; 0 is the ODE. None means 0.7, 2, 3, 0.7, 1 or 3 for these
            names.

    Raises:
        ValueError, TypeError: the name is unknown, or the scale is negative or not a number.
    """

    name: str
    scale: float | None = None

    def __post_init__(self) -> None:
        check_choice("Schedule", "name", self.name, (*SCHEDULES, *VP_SCHEDULES))
        if self.scale is None:
            shape = self.vp or _SHAPES[self.name]
            object.__setattr__(self, "scale", shape.default_scale)
        check_number("Schedule", "scale", self.scale, 0)

    @property
    def vp(self) -> VPShape | None:
        """Shape in VP time, or None for a schedule in the time of the flow."""
        return VP_SHAPES.get(self.name)

    def g(self, t: float) -> float:
        """Return the diffusion coefficient at time t in (0, 1], of a schedule in the time of the flow."""
        assert self.scale is not None
        return self.scale * _SHAPES[self.name].g(t)

    def sigma(self, t: float, delta: float) -> float:
        """Return g(t) sqrt(delta), the standard deviation of the noise in a step of length delta."""
        return self.g(t) * math.sqrt(delta)


def as_schedule(function: str, schedule: str | Schedule) -> Schedule:
    """Return the schedule of a name, or a given `Schedule` itself.

    Raises:
        ValueError, TypeError: the name is unknown, or the value is neither a name nor a Schedule.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if not isinstance(schedule, str):
        raise TypeError(f"{function}: schedule must be a name or a Schedule, got {schedule!r}")
    check_choice(function, "schedule", schedule, (*SCHEDULES, *VP_SCHEDULES))
    return Schedule(schedule)
