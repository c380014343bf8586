"""Arguments of the functions of module.cpp, from tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noisetilt_kernels.backends.tables import projection_tables
from noisetilt_kernels.python_ref.fourier import twiddle_factors


def arrays(*tensors: Tensor) -> Any:
    """Return the tensors as a tuple of NumPy arrays, or the only one as an array."""
    converted = tuple(tensor.numpy() for tensor in tensors)
    return converted if len(converted) > 1 else converted[0]


def projection(
    shape: Sequence[int],
    dtype: torch.dtype,
    value_chunk_sizes: Sequence[int],
    chunk_sizes: Sequence[int],
    tile_sizes: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    """Return the arguments of `project` for samples (C, H, W)."""
    values, tiles = projection_tables(
        shape, value_chunk_sizes, chunk_sizes, tile_sizes, 1e-3, dtype, torch.device("cpu")
    )
    of_tiles = [table for _, regions in tiles for _, pairs in regions for pair in pairs for table in pair]
    tables = [*values, *of_tiles]
    return {
        "tables": [arrays(table.lower, table.upper) for table in tables],
        "num_values": len(values),
        "tiles": [n for tile, regions in tiles for n in (*tile, *(len(pairs) for _, pairs in regions))],
    }


def half_length_fft(x: Tensor, inverse: bool = False) -> Tensor:
    """Return the unscaled FFT of samples (B, N), each read as N/2 complex numbers, as real numbers (B, N)."""
    z = torch.view_as_complex(x.unflatten(1, (-1, 2)))
    result = torch.fft.ifft(z, norm="forward") if inverse else torch.fft.fft(z)
    return torch.view_as_real(result).flatten(1).contiguous()


def twiddles(x: Tensor) -> Any:
    """Return the factors of the FFT of samples (B, N)."""
    return arrays(twiddle_factors(x.shape[1], x.dtype))


def turns(x: Tensor) -> Any:
    """Return the last of the factors, which the steps between half-length FFT and spectrum need."""
    return arrays(twiddle_factors(x.shape[1], x.dtype)[:, -(x.shape[1] // 4 + 1) :].contiguous())
