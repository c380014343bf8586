"""Variance-preserving (VP) time: steps of a flow that are even in the time of a diffusion model.

A VP process y = A x_0 + S eps has A = exp(-T/2) and S^2 = 1 - exp(-T) at its time rho, with the integral T of
a linear noise rate. It is a flow in other variables: y = c x_t with c = A + S and t = S / c. A step of its
reverse SDE from rho to rho_1, of length d = rho - rho_1 and with diffusion coefficient gamma, is in the
variables of the flow

    x' = (c - d c') / c_1 x - d c t' / c_1 v + gamma^2 d / (2 c c_1) s + gamma sqrt(d) / c_1 eps.

Psi-Sampler and RBF take their steps in this time. They start with y = eps at rho = 1, so with x = eps / c at
t = 0.9935. The last step goes to x0_hat without noise, as in the time of the flow.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

_LEAST, _MOST = 0.1, 20.0
"""Noise rates dT/drho at rho = 0 and 1."""


class VPShape(NamedTuple):
    """Diffusion coefficient and times of steps in VP time."""

    gamma: Callable[[float], float]
    """Diffusion coefficient at rho, before it is scaled."""
    rho: Callable[[float], float]
    """Time after a share of the steps in [0, 1], falling from 1 to 0."""
    default_scale: float


VP_SHAPES = {
    "vp": VPShape(lambda rho: 2 * rho - rho**2, lambda share: 1 - share, 1.0),
    "vp-quadratic": VPShape(lambda rho: rho**2, lambda share: math.sqrt(1 - share**2), 3.0),
}


class VPPoint(NamedTuple):
    """Variables of a flow at a VP time, and their derivatives in it."""

    t: float
    """Time of the flow."""
    c: float
    """Factor of y = c x."""
    t_slope: float
    c_slope: float


def at_vp_time(rho: float) -> VPPoint:
    """Return the point of the flow at a VP time in (0, 1]."""
    integral = (_MOST - _LEAST) / 2 * rho**2 + _LEAST * rho
    rate = (_MOST - _LEAST) * rho + _LEAST
    a = math.exp(-integral / 2)
    s = math.sqrt(-math.expm1(-integral))
    a_slope, s_slope = -rate * a / 2, rate * a**2 / (2 * s)
    c = a + s
    return VPPoint(s / c, c, (s_slope * a - s * a_slope) / c**2, a_slope + s_slope)
