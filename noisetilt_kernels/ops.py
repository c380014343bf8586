"""The operators `torch.ops.noisetilt.*`: the arguments they accept and the results they return.

Each `_operator` function below checks its arguments and returns a `Plan`, which calls the backend of the
device.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ._ops import ops as _ops
from .checks import warn
from .config import (
    DEFAULT_ALPHA,
    Sample,
    Tile,
    WhiteningConfig,
    check_alpha,
    check_chunks,
    check_steps,
    check_tile,
    largest_of,
    resolve,
    resolve_preset,
    sample_of,
    unflatten,
)
from .python_ref import tile_regions
from .registration import Plan, register

_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COMPLEX = (torch.complex64, torch.complex128)

_TOKEN_WIDTHS = (64, 128)  # of the packed latents of FLUX.1 and FLUX.2
_WAN_CHANNELS = (16, 48)  # of the latents of Wan2.1, and of Wan2.2 with 5 billion parameters


# ---- checks ----


def _check_dtype(op: str, x: Tensor, dtypes: Sequence[torch.dtype], name: str = "x") -> None:
    if x.dtype not in dtypes:
        valid = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{op}: {name} must be one of {valid}, got {str(x.dtype).removeprefix('torch.')}")


def _sample_of(op: str, x: Tensor) -> Sample:
    """Return the shape of one sample of x, a floating-point tensor."""
    _check_dtype(op, x, _REAL)
    return sample_of(op, x.shape)


def _flat_size_of(op: str, x: Tensor, name: str = "x", dtypes: Sequence[torch.dtype] = _REAL) -> int:
    """Return N of a tensor x that is (N,) or (B,N)."""
    _check_dtype(op, x, dtypes, name)
    if not 1 <= x.dim() <= 2:
        raise ValueError(
            f"{op}: {name} must be (N,) or (B,N), got {tuple(x.shape)}; use flatten(1) for latents"
        )
    if x.shape[-1] == 0:
        raise ValueError(f"{op}: {name} has empty samples: {tuple(x.shape)}")
    return int(x.shape[-1])


def _pair(op: str, tile: Sequence[int]) -> Tile:
    if len(tile) != 2:
        raise ValueError(f"{op}: tile must be (th, tw), got {list(tile)}")
    return int(tile[0]), int(tile[1])


def _check_even(op: str, size: int) -> None:
    if size % 2:
        raise ValueError(f"{op}: a sample needs an even number of values, got {size}")


def _check_block_size(op: str, block_size: int, coefficients: int) -> None:
    if block_size < 2 or coefficients % block_size:
        valid = [b for b in range(2, min(coefficients, 1024) + 1) if coefficients % b == 0]
        raise ValueError(
            f"{op}: block_size must be at least 2 and divide the {coefficients} complex coefficients of a "
            f"sample, got {block_size}; block sizes that do: {', '.join(map(str, valid)) or 'none'}"
        )


# ---- operators ----


def _whiten(x: Tensor, preset: str = "auto", alpha: float = DEFAULT_ALPHA) -> Plan:
    sample = _sample_of("whiten", x)
    _warn_of_tokens(x)
    # a symbolic batch size is not compared: torch.compile would compile again for other sizes
    if preset == "wan" and x.dim() == 4 and isinstance(x.shape[0], int) and x.shape[0] in _WAN_CHANNELS:
        warn(
            f"whiten: x {tuple(x.shape)} is taken as {x.shape[0]} samples (C,H,W), but the preset 'wan' is "
            "for videos (B,C,F,H,W); if x is one video (C,F,H,W), pass x[None]"
        )
    return _whitening(sample, resolve_preset(preset, sample, alpha))


def _whiten_config(
    x: Tensor, chunk_sizes: Sequence[int], tile_sizes: Sequence[int], mixing: Sequence[int], alpha: float
) -> Plan:
    sample = _sample_of("whiten", x)
    _warn_of_tokens(x)
    return _whitening(sample, resolve(unflatten(chunk_sizes, tile_sizes, mixing, alpha), sample))


def _warn_of_tokens(x: Tensor) -> None:
    """Warn if x looks like packed latents (B, tokens, 4C): it is then taken as one sample."""
    if x.dim() != 3:
        return
    batch, tokens, width = x.shape
    # A plane with one side many times the other is rare, and so are latents of one to three channels.
    if width in _TOKEN_WIDTHS and (tokens >= 4 * width or (batch < 4 and tokens >= 2 * width)):
        warn(
            f"whiten: x {tuple(x.shape)} is taken as one sample (C,H,W), but looks like packed latents (B, "
            "H/2 * W/2, 4C); unpack them first with nt.unpack_latents(x, height, width), or pass x[None] for "
            "one sample of this shape"
        )


def _whitening(sample: Sample, config: WhiteningConfig) -> Plan:
    plane = sample[1:3]
    tile_size = max((largest_of(tile_regions(plane, tile)) for tile in config.tile_sizes), default=0)
    return Plan(sample[:3], lambda backend, samples: backend.whiten(samples, config), tile_size=tile_size)


def _project_2os(x: Tensor, lower: Tensor, upper: Tensor) -> Plan:
    size = _flat_size_of("project_2os", x)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    for name, bounds in (("lower", lower), ("upper", upper)):
        if bounds.dtype != dtype:
            _check_dtype(
                "project_2os", bounds, (dtype,), f"{name} (for {str(x.dtype).removeprefix('torch.')} x)"
            )
        if bounds.device != x.device:
            raise ValueError(f"project_2os: {name} is on {bounds.device}, x on {x.device}")
        if bounds.dim() != 2:
            raise ValueError(f"project_2os: {name} must be (M, D), got {tuple(bounds.shape)}")
    if lower.shape != upper.shape:
        raise ValueError(
            f"project_2os: lower {tuple(lower.shape)} and upper {tuple(upper.shape)} must have one shape"
        )
    if lower.numel() != size:
        raise ValueError(
            f"project_2os: a table of {lower.shape[0]}x{lower.shape[1]} bounds does not fit samples of "
            f"{size} values; M*D must be {size}"
        )
    check_chunks("project_2os", *lower.shape)
    if lower.stride() == upper.stride():
        return Plan(
            (size,), lambda backend, samples, lower, upper: backend.project_2os(samples, lower, upper)
        )
    # clone, because contiguous() does not change the stride of a dimension of size 1
    clone = partial(torch.clone, memory_format=torch.contiguous_format)
    return Plan((size,), lambda backend, samples, *table: backend.project_2os(samples, *map(clone, table)))


def _project_tile_stats(
    x: Tensor, tile: Sequence[int], chunk_sizes: Sequence[int], alpha: float = DEFAULT_ALPHA
) -> Plan:
    op = "project_tile_stats"
    sample = _sample_of(op, x)
    pair = _pair(op, tile)
    check_tile(op, pair, sample)
    check_alpha(op, alpha)
    sizes = tuple(int(d) for d in chunk_sizes)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"{op}: chunk_sizes must be positive and not empty, got {list(sizes)}")
    regions = tile_regions(sample[1:3], pair)
    most_tiles = max(region.tiles_per_plane for region in regions)
    for chunk_size in sizes:
        check_chunks(op, sample.channels * most_tiles // chunk_size, chunk_size)
    return Plan(
        sample[:3],
        lambda backend, samples: backend.project_tile_stats(samples, pair, sizes, alpha),
        tile_size=largest_of(regions),
    )


def _project_wgnc(x: Tensor, block_size: int = 16) -> Plan:
    size = _flat_size_of("project_wgnc", x)
    _check_even("project_wgnc", size)
    _check_block_size("project_wgnc", block_size, size // 2)
    return Plan(
        (size,), lambda backend, samples: backend.project_wgnc(samples, block_size), block_size=block_size
    )


def _project_wgnc_blocks(y: Tensor, block_size: int = 16) -> Plan:
    size = _flat_size_of("project_wgnc_blocks", y, "y", _COMPLEX)
    _check_block_size("project_wgnc_blocks", block_size, size)
    return Plan(
        (size,),
        lambda backend, samples: backend.project_wgnc_blocks(samples, block_size),
        block_size=block_size,
    )


def _compact_fourier(x: Tensor, inverse: bool = False) -> Plan:
    size = _flat_size_of("compact_fourier", x)
    _check_even("compact_fourier", size)
    return Plan((size,), lambda backend, samples: backend.compact_fourier(samples, inverse))


def _butterfly(x: Tensor, tile: Sequence[int], steps: int, inverse: bool = False) -> Plan:
    sample = _sample_of("butterfly", x)
    pair = _pair("butterfly", tile)
    check_tile("butterfly", pair, sample, even=True)
    check_steps("butterfly", "steps", steps)
    return Plan(sample[:3], lambda backend, samples: backend.butterfly(samples, pair, steps, inverse))


def _hadamard_transform(x: Tensor, scale: float = 1.0) -> Plan:
    _check_dtype("hadamard_transform", x, _REAL)
    if x.dim() < 1 or x.shape[-1] == 0:
        raise ValueError(f"hadamard_transform: the last dimension of x is missing or empty: {tuple(x.shape)}")
    return Plan((int(x.shape[-1]),), lambda backend, samples: backend.hadamard_transform(samples, scale))


register("whiten", _whiten)
register("_whiten_config", _whiten_config)
register("project_2os", _project_2os, num_tensors=2)
register("project_tile_stats", _project_tile_stats)
register("project_wgnc", _project_wgnc)
register("project_wgnc_blocks", _project_wgnc_blocks)
# The transpose of an orthogonal transform is its inverse. The Walsh-Hadamard transform is symmetric.
register(
    "compact_fourier",
    _compact_fourier,
    transpose=lambda grad, inverse=False: _ops.compact_fourier(grad, not inverse),
)
register(
    "butterfly",
    _butterfly,
    transpose=lambda grad, tile, steps, inverse=False: _ops.butterfly(grad, tile, steps, not inverse),
)
register(
    "hadamard_transform",
    _hadamard_transform,
    transpose=lambda grad, scale=1.0: _ops.hadamard_transform(grad, scale),
)
