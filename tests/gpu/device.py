"""What the tests on a GPU share: comparison with the reference on the CPU, and a call of every operator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bits import assert_same_bits
from inputs import tables, values
from torch import Tensor

DEVICE = torch.device("cuda")
REAL = (torch.float32, torch.float64)
ROUNDED = 1e-12  # float64 against the reference, relative to the norm (DESIGN section 9)

ops = torch.ops.noisetilt


def assert_agrees(actual: Tensor, expected: Tensor, context: str = "") -> None:
    """The bits; of float64 the values to 1e-12 of the norm, and the bits of what is not finite."""
    actual = actual.cpu()
    if expected.dtype not in (torch.float64, torch.complex128):
        return assert_same_bits(actual, expected, context)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), context
    if expected.is_complex():
        actual, expected = torch.view_as_real(actual), torch.view_as_real(expected)
    finite = expected.isfinite()
    assert_same_bits(actual.masked_fill(finite, 0), expected.masked_fill(finite, 0), context)
    actual, expected = actual[finite], expected[finite]
    scale = float(expected.abs().max()) if len(expected) else 0.0
    if scale == 0.0:
        return assert_same_bits(actual, expected, context)
    error = float(((actual - expected) / scale).norm() / (expected / scale).norm())
    assert error <= ROUNDED, f"{context}: relative error {error}"
    return None


def check(
    op: Callable[[Tensor], Tensor],
    reference: Callable[[Tensor], Tensor],
    x: Tensor,
    names: Sequence[str],
    context: str = "",
    compare: Callable[[Tensor, Tensor, str], None] = assert_agrees,
) -> None:
    """The operator on the GPU against the reference on the CPU, for samples x, which have names: all at once, and each
    alone, when more of the GPU works on it."""
    expected, samples = reference(x), x.to(DEVICE)
    together = op(samples).cpu()
    alone = torch.cat([op(samples[k : k + 1]) for k in range(len(x))]).cpu()
    found = []
    for k, name in enumerate(names):
        for how, result in (("together", together), ("alone", alone)):
            try:
                compare(result[k], expected[k], f"{name}, {how}")
            except AssertionError as error:
                found.append(str(error).splitlines()[0])
    assert not found, "\n".join([f"{context}: {len(found)} of {2 * len(names)} differ", *found])


def samples(names: Sequence[str], shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """A sample of each of the named distributions."""
    return torch.stack([values(name, shape, dtype, seed) for name in names])


@dataclass(frozen=True)
class Case:
    """A call of an operator on samples (batch, *shape)."""

    op: Callable[..., Tensor]
    shape: tuple[int, ...]
    args: tuple[Any, ...] = ()
    linear: bool = False
    has_fft: bool = False  # which may round otherwise in another batch
    complex: bool = False

    def input(self, batch: int = 2, name: str = "1/k", seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        shape = (batch, *self.shape, 2) if self.complex else (batch, *self.shape)
        x = values(name, shape, dtype, seed).to(DEVICE)
        return torch.view_as_complex(x).clone() if self.complex else x

    def __call__(self, x: Tensor) -> Tensor:
        dtype = torch.float64 if x.dtype in (torch.float64, torch.complex128) else torch.float32
        return self.op(x, *(_there(a, x.device, dtype) if isinstance(a, Tensor) else a for a in self.args))


_moved: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}


def _there(table: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A table of a case on a device, always the same tensor."""
    key = id(table), device, dtype
    if key not in _moved:
        _moved[key] = table.to(device, dtype)
    return _moved[key]


CASES = {
    "whiten": Case(ops.whiten, (16, 64, 64), has_fft=True),
    "whiten, small": Case(ops.whiten, (4, 16, 16), has_fft=True),
    "whiten_config": Case(ops.whiten_config, (4, 8, 8), ([4], [4, 4, 2, 8], [8, 8, 6, 2, 2, 1], 1e-4), has_fft=True),
    "project_2os": Case(ops.project_2os, (65_536,), tables("typical", 16_384, 4)),
    "project_2os, small": Case(ops.project_2os, (256,), tables("typical", 64, 4)),
    "project_2os, long chunks": Case(ops.project_2os, (5_000,), tables("typical", 10, 500)),
    "project_tile_stats": Case(ops.project_tile_stats, (16, 64, 64), ([4, 4], [4, 16])),
    "project_wgnc": Case(ops.project_wgnc, (65_536,), has_fft=True),
    "project_wgnc, blocks of 8": Case(ops.project_wgnc, (256,), (8,), has_fft=True),
    "project_wgnc_blocks": Case(ops.project_wgnc_blocks, (32_768,), complex=True),
    "project_wgnc_blocks of 8": Case(ops.project_wgnc_blocks, (128,), (8,), complex=True),
    "compact_fourier": Case(ops.compact_fourier, (65_536,), linear=True, has_fft=True),
    "compact_fourier inverse": Case(ops.compact_fourier, (30,), (True,), linear=True, has_fft=True),
    "butterfly": Case(ops.butterfly, (16, 64, 64), ([64, 64], 12), linear=True),
    "butterfly inverse": Case(ops.butterfly, (2, 4, 6), ([2, 6], 2, True), linear=True),
    "butterfly of long tiles": Case(ops.butterfly, (1, 256, 256), ([256, 256], 16), linear=True),
    "hadamard_transform": Case(ops.hadamard_transform, (16, 4096), (0.25,), linear=True),
    "hadamard_transform padded": Case(ops.hadamard_transform, (3, 11), linear=True),
}
LINEAR = [name for name, case in CASES.items() if case.linear]
PROJECTIONS = [name for name, case in CASES.items() if not case.linear]
