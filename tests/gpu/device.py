"""Helpers of the GPU tests: backend under test, comparison with the reference on the CPU, a call of every
operator, configurations of W.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from inputs import tables, values
from torch import Tensor

import noisetilt_kernels as nt
from bench.gpu.compare import assert_agrees
from noisetilt_kernels import ops as operators
from noisetilt_kernels import python_ref
from noisetilt_kernels.backends import cpu, reference
from noisetilt_kernels.backends.reference import tables_like
from noisetilt_kernels.backends.tables import Extents
from noisetilt_kernels.config import Sample, WhiteningConfig, resolve_preset

DEVICE = torch.device("cuda")
BACKEND = nt.backends()["cuda"].backend
"""Backend under test: the preferred one, or the one that NOISETILT_BACKEND names."""

only_cuda = pytest.mark.skipif(
    BACKEND != "cuda", reason=f"needs operators that only the CUDA library has; the backend is {BACKEND}"
)

REAL = (torch.float32, torch.float64)

ops = torch.ops.noisetilt


_HOST = cpu if cpu.refusal("", torch.device("cpu"), Extents()) is None else reference


def on_cpu(op: Callable[..., Tensor], x: Tensor, *args: Any, backend: ModuleType = _HOST) -> Tensor:
    """Return the operator's result for x on the CPU, for any NOISETILT_BACKEND."""
    plan = getattr(operators, f"_{op.__name__}")(x, *args)
    return plan.run(backend, x.reshape(-1, *plan.sample_shape)).view_as(x)


def check(
    op: Callable[[Tensor], Tensor],
    reference: Callable[[Tensor], Tensor],
    x: Tensor,
    names: Sequence[str],
    context: str = "",
    compare: Callable[[Tensor, Tensor, str], None] = assert_agrees,
) -> None:
    """Compare the operator on the GPU with the reference on the CPU, for all samples at once and for each.

    More of the GPU works on a sample alone. `names` are the names of the samples, for messages.
    """
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


def samples(
    names: Sequence[str], shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:
    """Return one sample (*shape) of each named distribution, stacked."""
    return torch.stack([values(name, shape, dtype, seed) for name in names])


@dataclass(frozen=True)
class Case:
    """A call of an operator on samples (batch, *shape)."""

    op: Callable[..., Tensor]
    shape: tuple[int, ...]
    args: tuple[Any, ...] = ()
    linear: bool = False
    has_cufft: bool = False  # torch's FFT serves it, and may round a sample differently in each batch
    complex: bool = False

    def input(
        self, batch: int = 2, name: str = "1/k", seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        shape = (batch, *self.shape, 2) if self.complex else (batch, *self.shape)
        x = values(name, shape, dtype, seed).to(DEVICE)
        return torch.view_as_complex(x).clone() if self.complex else x

    def __call__(self, x: Tensor) -> Tensor:
        dtype = torch.float64 if x.dtype in (torch.float64, torch.complex128) else torch.float32
        return self.op(x, *(_there(a, x.device, dtype) if isinstance(a, Tensor) else a for a in self.args))


_moved: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}


def _there(table: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a case's table on a device; the same tensor for every call."""
    key = id(table), device, dtype
    if key not in _moved:
        _moved[key] = table.to(device, dtype)
    return _moved[key]


CASES = {
    "whiten": Case(ops.whiten, (16, 64, 64)),
    "whiten, small": Case(ops.whiten, (4, 16, 16)),
    "whiten, 6x24x40": Case(ops.whiten, (6, 24, 40), has_cufft=True),
    "whiten, uneven tiles": Case(ops.whiten, (8, 10, 22), has_cufft=True),
    "_whiten_config": Case(ops._whiten_config, (4, 8, 8), ([4], [4, 4, 2, 8], [8, 8, 6, 2, 2, 1], 1e-3)),
    "project_2os": Case(ops.project_2os, (65_536,), tables("typical", 16_384, 4)),
    "project_2os, small": Case(ops.project_2os, (256,), tables("typical", 64, 4)),
    "project_2os, long chunks": Case(ops.project_2os, (5_000,), tables("typical", 10, 500)),
    "project_tile_stats": Case(ops.project_tile_stats, (16, 64, 64), ([4, 4], [4, 16])),
    "project_tile_stats, uneven": Case(ops.project_tile_stats, (8, 10, 11), ([4, 4], [4])),
    "project_wgnc": Case(ops.project_wgnc, (65_536,)),
    "project_wgnc, blocks of 8": Case(ops.project_wgnc, (240,), (8,), has_cufft=True),
    "project_wgnc_blocks": Case(ops.project_wgnc_blocks, (32_768,), complex=True),
    "project_wgnc_blocks of 8": Case(ops.project_wgnc_blocks, (128,), (8,), complex=True),
    "compact_fourier": Case(ops.compact_fourier, (65_536,), linear=True),
    "compact_fourier inverse": Case(ops.compact_fourier, (30,), (True,), linear=True, has_cufft=True),
    "butterfly": Case(ops.butterfly, (16, 64, 64), ([64, 64], 12), linear=True),
    "butterfly inverse": Case(ops.butterfly, (2, 4, 6), ([2, 6], 2, True), linear=True),
    "butterfly of long tiles": Case(ops.butterfly, (1, 256, 256), ([256, 256], 16), linear=True),
    "butterfly, uneven": Case(ops.butterfly, (2, 9, 13), ([9, 12], 5), linear=True),
    "hadamard_transform": Case(ops.hadamard_transform, (16, 4096), (0.25,), linear=True),
    "hadamard_transform padded": Case(ops.hadamard_transform, (3, 11), linear=True),
}
LINEAR = [name for name, case in CASES.items() if case.linear]
PROJECTIONS = [name for name, case in CASES.items() if not case.linear]

# ---- configurations of W, and its parts computed by the reference ----

SMALL = {  # shape: configuration
    (2, 8, 8): WhiteningConfig((4, 16), ((2, 2), (4, 4)), (((8, 8), 6), ((4, 4), 4))),
    (4, 16, 16): WhiteningConfig(
        (4, 16), ((4, 4), (8, 8), (16, 16)), (((16, 16), 8), ((8, 8), 3), ((4, 16), 2))
    ),
    (3, 12, 8): WhiteningConfig((2, 3), ((3, 4), (1, 2), (12, 8)), (((12, 8), 7), ((6, 2), 2))),
    (1, 1, 256): WhiteningConfig((4, 16), ((1, 16), (1, 64)), (((1, 256), 8), ((1, 64), 6))),
    (5, 4, 6): WhiteningConfig((3, 40), ((2, 3), (4, 2)), (((4, 6), 3),)),
    (2, 7, 5): WhiteningConfig((2, 7), ((7, 5), (1, 5), (7, 1)), ()),
    (1, 48, 20): WhiteningConfig((1, 2, 4), ((48, 20), (24, 10)), (((48, 20), 10), ((6, 4), 3))),
    (6, 64, 64): WhiteningConfig((4, 16), ((2, 2),), (((2, 2), 2),)),
}
OF_MODELS = {  # FLUX, FLUX at 1360x768, SDXL, SANA, Z-Image, a flat sample, Wan
    shape: resolve_preset("auto", Sample(*shape, flat=shape[:2] == (1, 1)), 1e-3)
    for shape in (
        (16, 64, 64),
        (16, 96, 170),
        (4, 128, 128),
        (32, 32, 32),
        (16, 128, 128),
        (1, 1, 65_536),
        (336, 60, 104),
    )
}


def expected_project(x: Tensor, config: WhiteningConfig) -> Tensor:
    return python_ref.project(x, config.chunk_sizes, config.tile_sizes, tables_like(x, config.alpha))


def expected_mixing_domains(x: Tensor, config: WhiteningConfig) -> Tensor:
    for tile, repeats in config.mixing:
        for _ in range(repeats):
            x = expected_project(python_ref.butterfly(x, tile, 1), config)
        x = python_ref.butterfly_inverse(x, tile, repeats)
    return x
