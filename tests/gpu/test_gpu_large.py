"""Inputs of more than 2^31 values: indices must not overflow."""

from collections.abc import Iterator

import pytest
import torch
from bits import assert_same_bits
from device import DEVICE, only_cuda, ops
from inputs import tables
from torch import Tensor

from noisetilt_kernels import python_ref

MANY = 2**31
BYTES = 50 * 2**30  # of free memory

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.mem_get_info()[0] < BYTES,
    reason="needs 50 GiB of the GPU's memory",
)


@pytest.fixture(autouse=True)
def _give_memory_back() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


def many(*shape: int) -> Tensor:
    """Random samples of a shape, slightly more than 2^31 values."""
    size = torch.Size(shape).numel()
    x = torch.empty(MANY // size + 3, *shape, device=DEVICE)
    return x.normal_(generator=torch.Generator(DEVICE).manual_seed(0))


def some(x: Tensor) -> list[int]:
    """Indices of samples at both ends, and where the index of a value or a byte passes a power of two."""
    size = x[0].numel()
    near = [number // size + k for number in (MANY // 4, MANY // 2, MANY) for k in (-1, 0, 1)]
    return sorted({k for k in (0, 1, *near, len(x) - 2, len(x) - 1) if 0 <= k < len(x)})


CASES = {
    "butterfly": ((16, 64, 64), lambda x: ops.butterfly(x, [64, 64], 12)),
    "butterfly of small tiles": ((16, 64, 64), lambda x: ops.butterfly(x, [8, 8], 6)),
    "butterfly of long tiles": ((1, 256, 256), lambda x: ops.butterfly(x, [256, 256], 16)),
    "hadamard_transform": ((1024,), lambda x: ops.hadamard_transform(x)),
    "hadamard_transform of tiny rows": ((2,), lambda x: ops.hadamard_transform(x)),
    "project_tile_stats": ((16, 64, 64), lambda x: ops.project_tile_stats(x, [8, 8], [4, 16])),
    "project_tile_stats of narrow tiles": (
        (16, 64, 64),
        lambda x: ops.project_tile_stats(x, [8, 1], [4, 16]),
    ),
    "compact_fourier": ((65_536,), lambda x: ops.compact_fourier(x)),
    "compact_fourier inverse": ((65_536,), lambda x: ops.compact_fourier(x, True)),
    "project_wgnc_blocks": (
        (65_536,),
        lambda x: torch.view_as_real(ops.project_wgnc_blocks(torch.view_as_complex(x.view(len(x), -1, 2)))),
    ),
}
OF_THE_CUDA_LIBRARY = {
    "finite_or_nan": ((16, 64, 64), ops._finite_or_nan),
}


@pytest.mark.parametrize(
    "name", [*CASES, *(pytest.param(name, marks=only_cuda) for name in OF_THE_CUDA_LIBRARY)]
)
def test_many_values(name: str) -> None:
    shape, op = (CASES | OF_THE_CUDA_LIBRARY)[name]
    x = many(*shape)
    result = op(x)
    for k in some(x):
        assert_same_bits(result[k : k + 1], op(x[k : k + 1].clone()), f"sample {k} of {len(x)}")


@pytest.mark.parametrize("size", [64, 4096])
def test_many_samples_of_order_stats(size: int) -> None:
    x = many(size)
    lower, upper = (t.to(DEVICE) for t in tables("typical", size // 4, 4))
    result = ops.project_2os(x, lower, upper)
    for k in some(x):
        assert_same_bits(
            result[k : k + 1], ops.project_2os(x[k : k + 1].clone(), lower, upper), f"sample {k}"
        )


@pytest.mark.parametrize("chunk_size", [1, 4, 16])
def test_order_stats_of_one_huge_sample(chunk_size: int) -> None:
    """Compared with the reference on the GPU, whose sort is right for samples without NaN."""
    x = torch.randn(1, 2**26, device=DEVICE)
    quantiles = torch.linspace(-2, 2, x.numel() // chunk_size, device=DEVICE)[:, None]
    lower = (quantiles - 0.5 + torch.linspace(-0.1, 0.1, chunk_size, device=DEVICE)).contiguous()
    upper = lower + 1
    assert_same_bits(ops.project_2os(x, lower, upper), python_ref.project_2os(x, lower, upper))
