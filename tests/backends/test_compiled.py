"""Operators below the public ones: the handle of a projection, and W and its stages."""

import gc

import pytest
import torch
from bits import assert_same_bits
from inputs import values
from torch import Tensor

from noisetilt_kernels.backends import compiled, cpu, library
from noisetilt_kernels.backends.compiled import Projection
from noisetilt_kernels.backends.tables import fft_factors
from noisetilt_kernels.config import Sample, WhiteningConfig, flatten_mixing, resolve_preset

pytestmark = pytest.mark.skipif(library.failure is not None, reason="needs the compiled library")

SHAPE = (4, 16, 16)
CONFIG = resolve_preset("auto", Sample(*SHAPE), 1e-3)
REAL = (torch.float32, torch.float64)
ops = torch.ops.noisetilt


def projection(x: Tensor, config: WhiteningConfig = CONFIG) -> Projection:
    return cpu._projections(x, config.chunk_sizes, config.chunk_sizes, config.tile_sizes, config.alpha)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("config", [CONFIG, WhiteningConfig((4,), (), ())], ids=["auto", "no mixing"])
def test_whiten_is_its_stages(config: WhiteningConfig, dtype: torch.dtype) -> None:
    x = torch.cat([values(name, (2, *SHAPE), dtype) for name in ("normal", "1/k", "nans")])
    handle = projection(x, config).handle
    y = ops._finite_or_nan(x)
    ops._project_(y, handle)
    y = compiled.compact_fourier(y.flatten(1), inverse=False).view(x.shape)
    ops._project_(y, handle)
    y = compiled.compact_fourier(y.flatten(1), inverse=True).view(x.shape)
    ops._project_mixing_domains_(y, handle, flatten_mixing(config))
    assert_same_bits(ops._whiten(x, handle, flatten_mixing(config)), y)


def test_a_handle_keeps_its_tables() -> None:
    x = values("1/k", (2, *SHAPE))
    expected, kept = x.clone(), projection(x, WhiteningConfig((4, 16), (), ()))
    ops._project_(expected, kept.handle)
    *tables, factors = [tensor.clone() for tensor in kept.tensors]
    handle = ops._projection(x[:0], tables, [1, 1], 2, [], factors)
    del tables, factors
    gc.collect()
    other = [torch.full_like(table, torch.nan) for table in kept.tensors for _ in range(4)]
    ops._project_(x, handle)
    assert_same_bits(x, expected)
    assert other


@pytest.mark.parametrize(
    "x",
    [
        values("normal", (2, *SHAPE), torch.float64),
        values("normal", (2, *SHAPE)).view(2, 16, 16, 4),
        values("normal", (2, 2, 16, 16)),
    ],
    ids=["dtype", "shape", "size"],
)
def test_a_projection_is_not_used_for_other_samples(x: Tensor) -> None:
    handle = projection(values("normal", (1, *SHAPE))).handle
    for call in (
        lambda: ops._whiten(x, handle, []),
        lambda: ops._project_(x, handle),
        lambda: ops._project_mixing_domains_(x, handle, []),
    ):
        with pytest.raises(ValueError, match="the projection was made for other samples"):
            call()


def test_a_tensor_that_is_no_handle_is_refused() -> None:
    x = values("normal", (2, *SHAPE))
    handle = projection(x).handle
    for tensor in (x, handle[:-1], handle.float(), torch.zeros(3, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="expected a handle"):
            ops._project_(x, tensor)


def test_malformed_projections_are_refused() -> None:
    x, table = values("normal", (0, *SHAPE)), [torch.zeros(256, 4)] * 2
    for arguments, reason in (
        ((table[:1], [1], 1, []), "the numbers of tables and tiles do not agree"),
        ((table, [1], 1, [4]), "the numbers of tables and tiles do not agree"),
        ((table, [1], 0, []), "the numbers of tables and tiles do not agree"),
        (([t[:2] for t in table], [1], 1, []), "as many entries as there are values"),
        ((table * 2, [1, 1], 0, [17, 4, 1]), "a tile must fit into the plane"),
        (([t.double() for t in table], [1], 1, []), "the dtype and the device of the samples"),
    ):
        with pytest.raises(ValueError, match=reason):
            ops._projection(x, *arguments, None)


def test_factors_of_other_samples_are_refused() -> None:
    x = values("normal", (2, 1024))
    factors = fft_factors(1024, x.dtype, x.device)
    for other in (factors[:, 1:], factors[:1], factors.double(), fft_factors(1000, x.dtype, x.device)):
        for call in (
            lambda other=other: ops._compact_fourier(x, other, False),
            lambda other=other: ops._project_wgnc(x, other, 16),
        ):
            with pytest.raises(ValueError, match="do not belong to the samples"):
                call()


def test_whiten_needs_the_factors_of_its_fft() -> None:
    x = values("normal", (2, *SHAPE))
    *tables, _ = projection(x, WhiteningConfig((4, 16), (), ())).tensors
    handle = ops._projection(x[:0], tables, [1, 1], 2, [], None)
    with pytest.raises(ValueError, match="no factors for the FFT"):
        ops._whiten(x, handle, [])
