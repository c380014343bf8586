"""The compiled C++ kernels as a backend, reached through PyTorch's dispatcher.

The same operations serve CUDA (see `cuda`). The FFTs are torch's: a sample of N values goes through a complex FFT of
half its length.

On CUDA everything is enqueued on the current stream. The host waits for the device only when it meets tables or a
configuration for the first time; after one call like it, a call can be captured in a CUDA graph.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import Tile, WhiteningConfig
from . import library
from .extents import Extents
from .projections import Projections, TileTables
from .tables import Tables
from .user_tables import Examined, raise_for_faults

NAME = "native"

_ops = torch.ops.noisetilt

_COMPLEX_OF = {torch.float32: torch.complex64, torch.float64: torch.complex128}
_REAL_OF = {complex_dtype: dtype for dtype, complex_dtype in _COMPLEX_OF.items()}


def refusal(op: str, device: torch.device, extents: Extents) -> str | None:
    """Why the C++ kernels cannot serve the operator on the device; None if they can."""
    if device.type != "cpu":
        return f"its kernels are for the CPU, not for {device.type}"
    if library.failure is None and not has_kernels_for("cpu"):
        return "this build has no CPU kernels"
    return library.failure


def describe() -> str:
    """One line on what serves."""
    return f"C++ kernels, {library.build_info()['variant']} variant"


def has_kernels_for(device_type: str) -> bool:
    """Whether the libraries that are loaded have kernels for the device type."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("noisetilt::_project_", device_type.upper())


def project_2os(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    result = x.clone()
    if x.is_cuda:
        _ops._project_.default(
            result.view(len(x), 1, 1, -1), [lower, upper, _limits_of(lower, upper)], [False], 1, []
        )
    else:
        _ops._project_2os_.default(result, lower, upper)
    return result


def project_tile_stats(x: Tensor, tile: Tile, chunk_sizes: tuple[int, ...], alpha: float) -> Tensor:
    result = x.clone()
    _ops._project_.default(result, *_projection(x, (), chunk_sizes, (tile,), alpha))
    return result


def whiten(x: Tensor, config: WhiteningConfig) -> Tensor:
    projection = _projection(x, config.chunk_sizes, config.chunk_sizes, config.tile_sizes, config.alpha)
    result = _ops._finite_or_nan.default(x)
    _ops._project_.default(result, *projection)
    # compact_fourier there and back, written out so that never more than two samples are alive
    result = _half_fft(torch.fft.fft, result.flatten(1))
    result = _ops._compact_fourier_pack.default(result).view(x.shape)
    _ops._project_.default(result, *projection)
    result = _ops._compact_fourier_unpack.default(result.flatten(1))
    result = _half_fft(torch.fft.ifft, result).view(x.shape)
    _ops._project_mixing_domains_.default(
        result, *projection, [n for tile, repeats in config.mixing for n in (*tile, repeats)]
    )
    return result


def compact_fourier(x: Tensor, inverse: bool) -> Tensor:
    if inverse:
        return _half_fft(torch.fft.ifft, _ops._compact_fourier_unpack.default(x))
    return _ops._compact_fourier_pack.default(_half_fft(torch.fft.fft, x))


def butterfly(x: Tensor, tile: Tile, steps: int, inverse: bool) -> Tensor:
    return _ops._butterfly.default(x, tile, steps, inverse)


def hadamard_transform(x: Tensor, scale: float) -> Tensor:
    rows, size = x.shape
    padded = 1 << (size - 1).bit_length()
    if padded == size:
        return _ops._hadamard_transform.default(x, scale)
    result = x.new_zeros(rows, padded)
    result[:, :size] = x
    return _ops._hadamard_transform.default(result, scale)[:, :size].contiguous()


def project_wgnc(x: Tensor, block_size: int) -> Tensor:
    spectrum = _half_fft(torch.fft.fft, x)
    _ops._wgnc_between_ffts_.default(spectrum, block_size)
    return _half_fft(torch.fft.ifft, spectrum)


def project_wgnc_blocks(y: Tensor, block_size: int) -> Tensor:
    return _ops._project_wgnc_blocks.default(y.view(_REAL_OF[y.dtype]), block_size).view(y.dtype)


def _half_fft(fft: Callable[..., Tensor], x: Tensor) -> Tensor:
    """torch.fft.fft or ifft of samples (B, N) read as N/2 complex numbers each; the result likewise as reals (B, N).

    On the CPU one sample at a time: a library may round a batch differently, and what becomes of a sample must not
    depend on its company. On CUDA the batch at once, in whose company cuFFT may round a sample differently, within the
    tolerance of FFTs (DESIGN section 9): one after the other, small ones would leave the device idle.
    """
    if x.storage_offset() % 2:  # complex numbers do not begin there
        x = x.clone()
    z = x.view(_COMPLEX_OF[x.dtype])
    if x.device.type == "cpu" and len(z) > 1:
        result = torch.empty_like(z)
        for sample, target in zip(z, result, strict=True):
            fft(sample, out=target)
    else:
        result = fft(z)
    return result.view(x.dtype)


class _Projection(NamedTuple):
    """The arguments of `_project_` after x."""

    tables: list[Tensor]
    monotone: list[int]
    num_values: int
    tiles: list[int]


def _make_projection(values: list[Tables], tiles: list[TileTables]) -> _Projection:
    """Tables in the order in which project(x) uses them."""
    projection = _Projection([], [], len(values), [])

    def add(tables: Tables) -> None:
        projection.tables.extend((tables.lower, tables.upper))
        if tables.lower.is_cuda:
            projection.tables.append(_ops._rank_ranges.default(tables.lower, tables.upper)[0])
        projection.monotone.append(tables.monotone)

    for tables in values:
        add(tables)
    for (th, tw), statistics in tiles:
        for of_mean, of_energy in statistics:
            add(of_mean)
            add(of_energy)
        projection.tiles.extend((th, tw, len(statistics)))
    return projection


_projection = Projections(_make_projection)


def _examine(lower: Tensor, upper: Tensor) -> Tensor:
    limits, faults = _ops._rank_ranges.default(lower, upper)
    nan, crossed, _ = faults.tolist()
    raise_for_faults(nan, crossed)
    return limits


_examined = Examined(_examine)


def _limits_of(lower: Tensor, upper: Tensor) -> Tensor:
    """The rank limits of a user's tables on CUDA. Raises ValueError where a bound is NaN or the bounds are crossed.

    The host reads the verdict once, and again after a table has been changed in place. While a graph is captured it
    cannot: the limits are then made in the graph, of what the tables hold at each replay, and the tables not checked.
    """
    if torch.cuda.is_current_stream_capturing():
        return _ops._rank_ranges.default(lower, upper)[0]
    return _examined(lower, upper)
