"""Elementwise functions of float64 tensors on the CPU, by torch and the standard library.

A kernel of the Kernel Hub has this module in place of `python_ref.special`, whose functions are numpy's and
scipy's. Roots have the same bits. Sines and cosines are those of the C library. They had the bits of numpy's
in a test on x86-64 with AVX2, glibc 2.36, Python 3.11 and numpy 2.4. Quantiles may differ in the last
digits.

A quantile is found by Newton's method on the logarithm of a tail probability. This logarithm is concave, so
the method converges from every start.
"""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import cache

import torch
from torch import Tensor

_MOST_STEPS = 100
"""Largest number of Newton steps. Most quantiles need three to five."""
_SMALL_STEP = 1e-8
"""Relative step after which Newton's method stops: the next one would be its square."""


def sqrt(x: Tensor) -> Tensor:
    """Square root, rounded to nearest. The root of a negative number is NaN."""
    return _each(lambda value: math.sqrt(value) if value >= 0 else math.nan, x)


def cos(x: Tensor) -> Tensor:
    """Cosine of an angle from 0 to pi/4."""
    return _each(math.cos, x)


def sin(x: Tensor) -> Tensor:
    """Sine of an angle from 0 to pi/4."""
    return _each(math.sin, x)


def normal_quantile(p: Tensor) -> Tensor:
    """Quantile of N(0, 1) for the lower-tail probability `p`."""
    return torch.special.ndtri(p)


def beta_quantile(a: Tensor, b: Tensor, p: Tensor | float) -> Tensor:
    """Quantile of Beta(a, b), a and b positive integers, for the lower-tail probability `p`."""
    a, b, below = torch.broadcast_tensors(a, b, torch.as_tensor(p, dtype=torch.float64, device="cpu"))
    above = below > 0.5  # then the upper tail has more digits
    tail = torch.where(above, 1 - below, below)
    x = _beta_quantile(torch.where(above, b, a), torch.where(above, a, b), tail)
    return torch.where(above, 1 - x, x)


def gamma_quantile(a: float, p: Tensor) -> Tensor:
    """Quantile of Gamma(a, 1) for the lower-tail probability `p`."""
    return _gamma_quantile(a, p, 1 - p)


def gamma_upper_quantile(a: float, p: Tensor) -> Tensor:
    """Quantile of Gamma(a, 1) for the upper-tail probability `p`."""
    return _gamma_quantile(a, 1 - p, p)


def _each(function: Callable[[float], float], x: Tensor) -> Tensor:
    values = [function(value) for value in x.flatten().tolist()]
    return torch.tensor(values, dtype=torch.float64, device="cpu").view(x.shape)


def _solve(x: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the limit of x * exp(step(x))."""
    for _ in range(_MOST_STEPS):
        change = step(x)
        x = x * change.exp()
        if not (change.abs() > _SMALL_STEP).any():
            break
    return x


# ---- Beta distribution ----


def _beta_quantile(a: Tensor, b: Tensor, p: Tensor) -> Tensor:
    """Quantile of Beta(a, b) for a lower-tail probability p <= 1/2."""
    log_p = p.log()

    def step(x: Tensor) -> Tensor:
        fraction = _beta_fraction(a, b, x)
        log_below = _log_beta_density(a, b, x) - a.log() + fraction.log()
        return (log_p - log_below) * (1 - x) * fraction / a

    # first guess: the logarithm of the odds x / (1 - x) is nearly normal
    z = torch.special.ndtri(p)
    return _solve(torch.sigmoid((a / b).log() + z * (1 / a + 1 / b).sqrt()), step)


def _beta_fraction(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Continued fraction of I_x(a, b) (DLMF 8.17.22), by Steed's method. It is I_x times a over the density.

    See `_log_beta_density`. The number of terms is of the order of sqrt(a + b) at most.
    """
    total, change, ratio = torch.ones_like(x), torch.ones_like(x), torch.ones_like(x)
    m = 0
    while (change.abs() > 1e-16 * total).any():
        for coefficient in (
            -(a + m) * (a + b + m) / ((a + 2 * m) * (a + 2 * m + 1)),
            (m + 1) * (b - m - 1) / ((a + 2 * m + 1) * (a + 2 * m + 2)),
        ):
            ratio = 1 / (1 + coefficient * x * ratio)
            change = change * (ratio - 1)
            total = total + change
        m += 1
    return total


def _log_beta_density(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Logarithm of x^a (1-x)^b / B(a, b), written so that large terms do not cancel.

    It is the value at a / (a+b), by Stirling's formula, and the deviance of x from there.
    """
    n = a + b
    excess = n * x - a
    return (
        (a * b / (2 * math.pi * n)).log() / 2
        + (_stirling_error(n) - _stirling_error(a) - _stirling_error(b))
        + (a * _log_minus(n * x / a, excess / a) + b * _log_minus(n * (1 - x) / b, -excess / b))
    )


def _log_minus(v: Tensor, u: Tensor) -> Tensor:
    """Return log(v) - u with all digits, for v = 1 + u > 0."""
    # for a small u: log(1 + u) = 2 artanh(r), r = u / (2 + u)
    r = u / (2 + u)
    square = r * r
    series = torch.zeros_like(u)
    for power in range(29, 1, -2):
        series = series * square + 1 / power
    return torch.where(u.abs() < 0.5, r * (2 * square * series - u), v.log() - u)


def _stirling_error(n: Tensor) -> Tensor:
    """Return log Gamma(n) - ((n - 1/2) log n - n + log(2 pi) / 2) for multiples n of 1/2, n > 0."""
    small = _small_stirling_errors()
    inverse = 1 / n
    square = inverse * inverse
    series = torch.zeros_like(n)
    for coefficient in (-691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        series = series * square + coefficient
    place = (2 * n).clamp(max=len(small) - 1).long()
    return torch.where(2 * n < len(small), small[place], series * inverse)


@cache
def _small_stirling_errors() -> Tensor:
    """Values of `_stirling_error` by 2n, for which its series is not exact. Place 0 is not used."""
    half = Decimal("0.5")
    with localcontext() as context:
        context.prec = 40
        pi = Decimal("3.141592653589793238462643383279502884197")
        log_gamma = [Decimal(0), pi.ln() / 2, Decimal(0)]
        for twice in range(3, 40):
            log_gamma.append(log_gamma[twice - 2] + ((twice - 2) * half).ln())
        errors = [0.0]
        for twice in range(1, 40):
            n = twice * half
            errors.append(float(log_gamma[twice] - ((n - half) * n.ln() - n + (2 * pi).ln() / 2)))
    with torch.inference_mode(False):
        return torch.tensor(errors, dtype=torch.float64, device="cpu")


# ---- Gamma distribution ----


def _gamma_quantile(a: float, below: Tensor, above: Tensor) -> Tensor:
    """Quantile of Gamma(a, 1), a a multiple of 1/2, for the probabilities below and above it."""
    # the series converges well also a little above the median, the continued fraction only farther out
    in_upper_tail = above < 0.1
    x = torch.empty_like(below)
    x[~in_upper_tail] = _lower_gamma_quantile(a, below[~in_upper_tail])
    x[in_upper_tail] = _upper_gamma_quantile(a, above[in_upper_tail])
    return x


def _lower_gamma_quantile(a: float, p: Tensor) -> Tensor:
    log_p = p.log()

    def step(x: Tensor) -> Tensor:
        series = _gamma_series(a, x)
        return (log_p - (_log_gamma_density(a, x) - math.log(a) + series.log())) * series / a

    # first guess: no less than the root of the first term of the series
    first_term = ((log_p + math.lgamma(a + 1)) / a).exp()
    return _solve(torch.maximum(_cube_root_guess(a, torch.special.ndtri(p)), first_term), step)


def _upper_gamma_quantile(a: float, q: Tensor) -> Tensor:
    log_q = q.log()

    def step(x: Tensor) -> Tensor:
        fraction = _gamma_fraction(a, x)
        # a step of x itself: the logarithm of the upper tail is concave in x
        change = (_log_gamma_density(a, x) + fraction.log() - log_q) * fraction
        return torch.log1p(change)

    return _solve(_cube_root_guess(a, -torch.special.ndtri(q)), step)


def _cube_root_guess(a: float, z: Tensor) -> Tensor:
    """Quantile of Gamma(a, 1) if its cube root were normal. z: quantile of N(0, 1)."""
    return a * (1 - 1 / (9 * a) + z / (3 * math.sqrt(a))).clamp(min=0) ** 3


def _log_gamma_density(a: float, x: Tensor) -> Tensor:
    """Logarithm of x^a exp(-x) / Gamma(a), written so that large terms do not cancel."""
    shape = torch.tensor(a, dtype=torch.float64, device="cpu")
    return math.log(a / (2 * math.pi)) / 2 - _stirling_error(shape) + a * _log_minus(x / a, (x - a) / a)


def _gamma_series(a: float, x: Tensor) -> Tensor:
    """Sum of x^k / ((a+1) .. (a+k)) (DLMF 8.7.1). It is P(a, x) times a over the density."""
    total, term = torch.ones_like(x), torch.ones_like(x)
    k = 0
    while (term > 1e-17 * total).any():
        k += 1
        term = term * x / (a + k)
        total = total + term
    return total


def _gamma_fraction(a: float, x: Tensor) -> Tensor:
    """Continued fraction of Q(a, x) (DLMF 8.9.2), by Steed's method. It is Q(a, x) over the density."""
    denominator = x + 1 - a
    ratio = 1 / denominator
    total = change = ratio
    k = 0
    while (change.abs() > 1e-16 * total).any():
        k += 1
        numerator = k * (a - k)
        denominator = denominator + 2
        ratio = 1 / (denominator + numerator * ratio)
        change = change * (denominator * ratio - 1)
        total = total + change
    return total
