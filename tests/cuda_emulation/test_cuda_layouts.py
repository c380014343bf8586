"""CUDA kernels, emulated: empty batches, samples at any address, and the kernels that a call launches."""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from bits import assert_same_bits
from cuda_emulation.arguments import turns, twiddles
from cuda_emulation.build import load
from cuda_emulation.test_cuda_kernels import projection
from inputs import values
from torch import Tensor


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    return load("kernels")


def calls(kernels: ModuleType, x: Tensor) -> list[Callable[[], Any]]:
    """Calls of all kernels on samples x (B, 2, 8, 16), also with blocks of another size than 16."""
    samples, rows = x.numpy(), x.flatten(1).numpy()
    factors, all_factors = turns(x.flatten(1)), twiddles(x.flatten(1))
    problem = projection((2, 8, 16), x.dtype, (4,), (4,), [(4, 4)])
    return [
        partial(kernels.project, samples, **problem),
        partial(kernels.project_mixing_domains, samples, **problem, mixing=[8, 16, 2]),
        partial(kernels.finite_or_nan, samples),
        partial(kernels.butterfly, samples, tile=[8, 16], steps=3),
        partial(kernels.butterfly, samples, tile=[2, 2], steps=2, inverse=True),
        partial(kernels.hadamard_transform, rows, scale=0.5),
        partial(kernels.compact_fourier_pack, rows, factors),
        partial(kernels.compact_fourier_unpack, rows, factors),
        *(partial(kernels.compact_fourier, rows, all_factors, inverse=back) for back in (False, True)),
        *(partial(kernels.project_wgnc_blocks, rows, block_size=size) for size in (16, 8)),
        *(partial(kernels.wgnc_between_ffts, rows, factors, block_size=size) for size in (16, 8)),
        *(partial(kernels.project_wgnc, rows, all_factors, block_size=size) for size in (16, 8)),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empty_batches(kernels: ModuleType, dtype: torch.dtype) -> None:
    kernels.set_device()
    for call in calls(kernels, torch.empty(0, 2, 8, 16, dtype=dtype)):
        assert call().size == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_values", [1, 2, 3])
def test_samples_at_any_address(kernels: ModuleType, num_values: int, dtype: torch.dtype) -> None:
    """Samples begin at a multiple of their type, not of a complex number or of 16 bytes."""
    kernels.set_device(num_sms=4, threads_per_block=128)
    needing_complex = (kernels.compact_fourier, kernels.project_wgnc, kernels.wgnc_between_ffts)
    for call in calls(kernels, values("normal", (2, 2, 8, 16), dtype)):
        expected = torch.from_numpy(call())
        kernels.displace(num_values)
        try:
            if call.func in needing_complex and num_values % 2 and not call.keywords.get("inverse"):
                with pytest.raises(ValueError, match="complex numbers must begin at a multiple"):
                    call()
            else:
                assert_same_bits(torch.from_numpy(call()), expected)
        finally:
            kernels.displace(0)


@pytest.mark.parametrize("shape", [(2, 8, 16), (1, 64, 64), (1, 256, 256)], ids=str)
def test_the_batch_changes_no_kernel(kernels: ModuleType, shape: tuple[int, int, int]) -> None:
    """One call loads the kernels for every batch: CUDA loads them at their first launch."""
    kernels.set_device(num_sms=8, threads_per_block=1024, threads_per_sm=2048)
    x = values("1/k", (5, *shape))
    tile = list(shape[1:])

    def launched(batch: int) -> list[set[str]]:
        samples, rows = x[:batch].numpy(), x[:batch].flatten(1).numpy()
        factors, all_factors = turns(x.flatten(1)), twiddles(x.flatten(1))
        found = []
        for call in (
            partial(kernels.finite_or_nan, samples),
            *(
                partial(kernels.butterfly, samples, tile=tile, steps=2, inverse=back)
                for back in (False, True)
            ),
            partial(kernels.butterfly, samples, tile=[2, 2], steps=2),
            partial(kernels.hadamard_transform, rows, scale=0.5),
            partial(kernels.compact_fourier_pack, rows, factors),
            partial(kernels.compact_fourier_unpack, rows, factors),
            *(partial(kernels.compact_fourier, rows, all_factors, inverse=back) for back in (False, True)),
            *(partial(kernels.project_wgnc_blocks, rows, block_size=size) for size in (16, 8)),
            *(partial(kernels.wgnc_between_ffts, rows, factors, block_size=size) for size in (16, 8)),
            *(partial(kernels.project_wgnc, rows, all_factors, block_size=size) for size in (16, 8)),
        ):
            kernels.take_launched()
            call()
            found.append(set(kernels.take_launched()))
        return found

    alone, together = launched(1), launched(5)
    assert alone == together
    assert all(alone)
