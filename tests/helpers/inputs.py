"""Inputs of the tests: distributions of values, structured fields, and tables."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.inputs import FLUX, gaussian
from noisetilt_kernels import python_ref

# ---- distributions of values ----

_NEGATIVE_NAN = {torch.float32: (torch.int32, -0x00400000), torch.float64: (torch.int64, -0x0008000000000000)}


def negative_nan(dtype: torch.dtype) -> Tensor:
    """Return NaN with the sign bit set, from its bit pattern: arithmetic does not define a NaN's sign."""
    integer, pattern = _NEGATIVE_NAN[dtype]
    return torch.tensor(pattern, dtype=integer).view(dtype)


def _sprinkle(x: Tensor, values: Sequence[Tensor | float], g: torch.Generator) -> Tensor:
    """Replace about a tenth of x by the given values."""
    which = torch.randint(0, 10 * len(values), x.shape, generator=g)
    for k, value in enumerate(values):
        x = torch.where(which == k, value, x)
    return x


def _normal(n: int, dtype: torch.dtype, g: torch.Generator) -> Tensor:
    return torch.randn(n, dtype=dtype, generator=g)


def _one_over_k(n: int, dtype: torch.dtype, g: torch.Generator) -> Tensor:
    spectrum = torch.fft.rfft(torch.randn(n, dtype=torch.float64, generator=g))
    return torch.fft.irfft(spectrum / torch.arange(1, len(spectrum) + 1), n=n).to(dtype) * math.sqrt(n)


def _smallest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).smallest_normal


DISTRIBUTIONS: dict[str, Callable[[int, torch.dtype, torch.Generator], Tensor]] = {
    "normal": _normal,
    "constant": lambda n, dtype, g: torch.full((n,), 0.7, dtype=dtype),
    "zero": lambda n, dtype, g: torch.zeros(n, dtype=dtype),
    "few values": lambda n, dtype, g: torch.randint(-2, 3, (n,), generator=g).to(dtype),
    "bf16-quantised": lambda n, dtype, g: _normal(n, torch.float32, g).bfloat16().to(dtype),
    "sorted": lambda n, dtype, g: _normal(n, dtype, g).sort().values,
    "reversed": lambda n, dtype, g: _normal(n, dtype, g).sort(descending=True).values,
    "grid": lambda n, dtype, g: torch.randperm(n, generator=g).to(dtype) * (8 / n) - 4,
    "huge": lambda n, dtype, g: _normal(n, dtype, g) * 1e30,
    "largest": lambda n, dtype, g: torch.where(_normal(n, dtype, g) > 0, 1, -1) * torch.finfo(dtype).max,
    "tiny": lambda n, dtype, g: _normal(n, dtype, g) * 1e-30,
    "denormal": lambda n, dtype, g: _normal(n, dtype, g) * (_smallest(dtype) / 16),
    "signed zeros": lambda n, dtype, g: _sprinkle(
        _normal(n, dtype, g) * (torch.rand(n, generator=g) < 0.3), [-0.0], g
    ),
    "infinities": lambda n, dtype, g: _sprinkle(_normal(n, dtype, g), [torch.inf, -torch.inf], g),
    "nans": lambda n, dtype, g: _sprinkle(_normal(n, dtype, g), [torch.nan, negative_nan(dtype)], g),
    "everything": lambda n, dtype, g: _sprinkle(
        _normal(n, dtype, g),
        [
            torch.nan,
            negative_nan(dtype),
            torch.inf,
            -torch.inf,
            0.0,
            -0.0,
            _smallest(dtype) / 4,
            -1e30,
            1e30,
            1.0,
        ],
        g,
    ),
    "spikes": lambda n, dtype, g: (torch.rand(n, generator=g) < 0.01) * _normal(n, dtype, g) * 100,
    "one outlier": lambda n, dtype, g: _normal(n, dtype, g).index_fill(0, torch.tensor([n // 2]), 1e30),
    "1/k": _one_over_k,
    "shifted": lambda n, dtype, g: _normal(n, dtype, g) * 1e-3 + 5,
}


def values(
    name: str, shape: int | Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:
    """Return a tensor of the named distribution, the same for the same arguments."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    generator = torch.Generator().manual_seed(seed)
    return DISTRIBUTIONS[name](math.prod(shape), dtype, generator).to(dtype).reshape(shape)


# ---- tables ----


def _typical(m: int, d: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return python_ref.confidence_table(m, d)


def _unsorted(m: int, d: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, m, d, dtype=torch.float64, generator=g)
    return torch.minimum(a, b), torch.maximum(a, b)


def _monotone(m: int, d: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    lower, upper = _unsorted(m, d, g)
    return lower.sort(dim=0).values, upper.sort(dim=0).values  # sorting both keeps lower <= upper


def _stepped(m: int, d: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    lower, upper = _monotone(m, d, g)
    return lower.floor(), upper.ceil()


def _half_open(m: int, d: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    lower, upper = _monotone(m, d, g)
    return lower.index_fill(0, torch.arange(m // 2), -torch.inf), upper.index_fill(
        0, torch.arange(m // 2, m), torch.inf
    )


TABLES: dict[str, Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]] = {
    "typical": _typical,
    "monotone": _monotone,
    "stepped": _stepped,
    "half open": _half_open,
    "unsorted": _unsorted,
    "pinned": lambda m, d, g: (_unsorted(m, d, g)[0],) * 2,
    "signed zeros": lambda m, d, g: (torch.full((m, d), -0.0).double(), torch.zeros(m, d).double()),
    "unbounded": lambda m, d, g: (
        torch.full((m, d), -torch.inf).double(),
        torch.full((m, d), torch.inf).double(),
    ),
    "infinite": lambda m, d, g: (torch.full((m, d), torch.inf).double(),) * 2,
}


def tables(
    name: str, num_chunks: int, chunk_size: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the named table (lower, upper), each (num_chunks, chunk_size); same arguments, same table."""
    generator = torch.Generator().manual_seed(seed)
    lower, upper = TABLES[name](num_chunks, chunk_size, generator)
    return lower.to(dtype), upper.to(dtype)


# ---- latents ----


def noise(count: int, shape: Sequence[int] = FLUX, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard normal samples (count, *shape). Sample s has seed s."""
    return torch.stack([gaussian(shape, dtype, seed) for seed in range(count)])
