"""The compiled kernels as a backend: C++ on the CPU, reached through PyTorch's dispatcher.

The FFTs are torch's: a sample of N values goes through a complex FFT of half its length.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _library
from ..bounds import Tables, cached_tables
from ..config import Tile, WhiteningConfig
from ..python_ref import ChiSquare, Normal, Reference

NAME = "native"

_ops = torch.ops.noisetilt


def refusal(device_type: str) -> str | None:
    """Why the compiled kernels cannot serve the device type; None if they can."""
    if _library.failure is not None:
        return _library.failure
    if not torch._C._dispatch_has_kernel_for_dispatch_key("noisetilt::_project_2os_", device_type.upper()):
        return f"this build has no compiled kernels for {device_type}"
    return None


def describe() -> str:
    """One line on what serves."""
    return f"C++ kernels, {_library.build_info()['variant']} variant"


def project_2os(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    result = x.clone()
    _ops._project_2os_(result, lower, upper)
    return result


def project_tile_stats(x: Tensor, tile: Tile, chunk_sizes: tuple[int, ...], alpha: float) -> Tensor:
    result = x.clone()
    _ops._project_(result, *_projection(x.shape[1:], (), chunk_sizes, (tile,), alpha, x.dtype, x.device))
    return result


def whiten(x: Tensor, config: WhiteningConfig) -> Tensor:
    projection = _projection(
        x.shape[1:], config.chunk_sizes, config.chunk_sizes, config.tile_sizes, config.alpha, x.dtype, x.device
    )
    result = _ops._finite_or_nan(x)
    _ops._project_(result, *projection)
    # compact_fourier there and back, written out so that never more than two samples are alive
    result = _half_fft(torch.fft.fft, result.flatten(1))
    result = _ops._compact_fourier_pack(result).view(x.shape)
    _ops._project_(result, *projection)
    result = _ops._compact_fourier_unpack(result.flatten(1))
    result = _half_fft(torch.fft.ifft, result).view(x.shape)
    _ops._mix_(result, *projection, [n for tile, repeats in config.mixing for n in (*tile, repeats)])
    return result


def compact_fourier(x: Tensor, inverse: bool) -> Tensor:
    if inverse:
        return _half_fft(torch.fft.ifft, _ops._compact_fourier_unpack(x))
    return _ops._compact_fourier_pack(_half_fft(torch.fft.fft, x))


def butterfly(x: Tensor, tile: Tile, steps: int, inverse: bool) -> Tensor:
    result = x.clone()
    _ops._butterfly_(result, tile, steps, inverse)
    return result


def hadamard_transform(x: Tensor, scale: float) -> Tensor:
    rows, size = x.shape
    padded = 1 << (size - 1).bit_length()
    result = x.new_zeros(rows, padded)
    result[:, :size] = x
    _ops._hadamard_transform_(result, scale)
    return result[:, :size].contiguous()


def project_wgnc(x: Tensor, block_size: int) -> Tensor:
    spectrum = _half_fft(torch.fft.fft, x)
    _ops._wgnc_between_ffts_(spectrum, block_size)
    return _half_fft(torch.fft.ifft, spectrum)


def project_wgnc_blocks(y: Tensor, block_size: int) -> Tensor:
    result = torch.view_as_real(y).clone()
    _ops._project_wgnc_blocks_(result, block_size)
    return torch.view_as_complex(result)


def _half_fft(fft: Callable[..., Tensor], x: Tensor) -> Tensor:
    """torch.fft.fft or ifft of samples (B, N) read as N/2 complex numbers each; the result likewise as reals (B, N).

    On the CPU one sample at a time: a library may round a batch differently, and what becomes of a sample must not
    depend on its company.
    """
    z = torch.view_as_complex(x.unflatten(1, (-1, 2)))
    if x.device.type == "cpu" and len(z) > 1:
        result = torch.empty_like(z)
        for sample, target in zip(z, result, strict=True):
            fft(sample, out=target)
    else:
        result = fft(z)
    return torch.view_as_real(result).flatten(1)


class _Projection(NamedTuple):
    """The arguments of `_project_` after x."""

    tables: list[Tensor]
    monotone: list[int]
    num_values: int
    tiles: list[int]


@lru_cache(maxsize=32)
def _projection(
    shape: tuple[int, ...],
    value_chunk_sizes: tuple[int, ...],
    chunk_sizes: tuple[int, ...],
    tile_sizes: tuple[Tile, ...],
    alpha: float,
    dtype: torch.dtype,
    device: torch.device,
) -> _Projection:
    """Tables in the order in which project(x) uses them; chunk sizes that do not divide a tile count are left out."""
    channels, height, width = shape
    size = channels * height * width
    projection = _Projection([], [], len(value_chunk_sizes), [])

    def add(count: int, chunk_size: int, reference: Reference) -> None:
        tables: Tables = cached_tables(count // chunk_size, chunk_size, alpha, reference, dtype, device)
        projection.tables.extend((tables.lower, tables.upper))
        projection.monotone.append(tables.monotone)

    for chunk_size in value_chunk_sizes:
        add(size, chunk_size, Normal())
    for th, tw in tile_sizes:
        count = size // (th * tw)
        dividing = [chunk_size for chunk_size in chunk_sizes if count % chunk_size == 0]
        for chunk_size in dividing:
            add(count, chunk_size, Normal())
            add(count, chunk_size, ChiSquare(th * tw - 1))
        projection.tiles.extend((th, tw, len(dividing)))
    return projection
