"""The public operators `torch.ops.noisetilt.*`: what they accept, what they return, and how they are run.

Each one checks its arguments, converts the samples to contiguous float32 or float64, and hands them to the
backend of their device. The same checks serve the fake (meta) implementations, so a mistake is reported
identically under `torch.compile`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import autograd_shortcut
from .backends import backend_for
from .backends import library as _library  # noqa: F401  (defines the operators)
from .backends.extents import Extents
from .config import Sample, Tile, WhiteningConfig, check_alpha, check_tile, resolve, resolve_preset

_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COMPLEX = (torch.complex64, torch.complex128)

_library_impl = torch.library.Library("noisetilt", "IMPL")


# ---- checks ----


def _check_dtype(op: str, x: Tensor, dtypes: Sequence[torch.dtype], name: str = "x") -> None:
    if x.dtype not in dtypes:
        valid = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{op}: {name} must be one of {valid}, got {str(x.dtype).removeprefix('torch.')}")


def _sample_of(op: str, x: Tensor) -> Sample:
    """The sample shape of x given as (N,), (B,N), (C,H,W), (B,C,H,W) or (B,C,F,H,W)."""
    _check_dtype(op, x, _REAL)
    if not 1 <= x.dim() <= 5:
        raise ValueError(
            f"{op}: x must be (N,), (B,N), (C,H,W), (B,C,H,W) or (B,C,F,H,W), got {tuple(x.shape)}"
        )
    if x.dim() <= 2:
        sample = Sample(1, 1, int(x.shape[-1]), flat=True)
    else:
        *channels, height, width = (int(n) for n in (x.shape if x.dim() == 3 else x.shape[1:]))
        sample = Sample(channels[0] * (channels[1] if len(channels) == 2 else 1), height, width)
    if sample.size == 0:
        raise ValueError(f"{op}: x has empty samples: {tuple(x.shape)}")
    return sample


def _flat_size_of(op: str, x: Tensor, name: str = "x", dtypes: Sequence[torch.dtype] = _REAL) -> int:
    """N of x given as (N,) or (B,N)."""
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
            f"{op}: block_size must be at least 2 and divide the {coefficients} complex coefficients of a sample, "
            f"got {block_size}; block sizes that do: {', '.join(map(str, valid)) or 'none'}"
        )


# ---- registration ----


class _Plan(NamedTuple):
    """What a call comes down to once its arguments have been checked."""

    sample_shape: tuple[int, ...]
    run: Callable[..., Tensor]  # (backend, contiguous samples (B, *sample_shape), other tensors) -> samples
    tile_size: int = 0  # see Extents
    block_size: int = 0


def _prepare(op: str, plan: _Plan, x: Tensor) -> Callable[..., Tensor]:
    """The plan as a function of any tensor of x's shape, dtype and device, and the other tensors.

    It runs on contiguous float32 or float64 samples, and gives the result x's dtype and shape.
    """
    if x.numel() == 0:
        return lambda x, *tensors: torch.empty_like(x, memory_format=torch.contiguous_format)
    sample_shape, run, tile_size, block_size = plan
    backend = backend_for(op, x.device, Extents(math.prod(sample_shape), tile_size, block_size))
    reshaped = x.shape[1:] != sample_shape
    half, lazy = x.dtype in (torch.float16, torch.bfloat16), x.dtype.is_complex

    def call(x: Tensor, *tensors: Tensor) -> Tensor:
        samples = x.float() if half else x.resolve_conj() if lazy else x
        if not samples.is_contiguous():
            samples = samples.contiguous()
        if reshaped:
            samples = samples.view(-1, *sample_shape)
        result = run(backend, samples, *tensors)
        if half:
            result = result.to(x.dtype)
        return result.view_as(x) if reshaped else result

    return call


_CALLS_KEPT = 256

_HASHABLE = (int, float, bool, str)


def _metadata(arg: Any) -> Any:
    """What a plan may depend on, hashable."""
    if type(arg) is list:
        return tuple(arg)
    return (arg.shape, arg.stride(), arg.dtype, arg.device) if isinstance(arg, Tensor) else arg


def _register(name: str, make_plan: Callable[..., _Plan], *, num_tables: int = 0) -> None:
    """Implements operator `name` from make_plan(x, ...), which checks the arguments; tables are the first after x.

    A plan depends on the metadata of x and the tables and on the other arguments, and is kept for the next call.
    """
    calls: dict[Any, Callable[..., Tensor]] = {}

    def implementation(x: Tensor, *args: Any) -> Tensor:
        key = (
            x.shape,
            x.dtype,
            x.device,
            *[arg if type(arg) in _HASHABLE else _metadata(arg) for arg in args],
        )
        call = calls.get(key)
        if call is None:
            call = _prepare(name, make_plan(x, *args), x)
            if len(calls) == _CALLS_KEPT:
                calls.clear()
            calls[key] = call
        return call(x, *args[:num_tables])

    def fake(x: Tensor, *args: Any) -> Tensor:
        make_plan(x, *args)
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    _library_impl.impl(name, implementation, "CompositeExplicitAutograd")
    autograd_shortcut.register(_library_impl, name, implementation, num_tables)
    torch.library.register_fake(f"noisetilt::{name}", fake, lib=_library_impl)


def _no_gradient(name: str) -> None:
    def backward(ctx: Any, grad: Tensor) -> None:
        raise NotImplementedError(
            f"{name} has no gradient: it is a projection, meant for a gradient and not for the graph that makes one. "
            "Pass x.detach(), or call it under torch.no_grad()."
        )

    torch.library.register_autograd(f"noisetilt::{name}", backward, lib=_library_impl)


# ---- operators ----


def _whiten(x: Tensor, preset: str = "auto", alpha: float = 1e-4) -> _Plan:
    sample = _sample_of("whiten", x)
    return _whitening(sample, resolve_preset(preset, sample, alpha))


def _whiten_config(
    x: Tensor,
    chunk_sizes: Sequence[int],
    tile_sizes: Sequence[int],
    mixing: Sequence[int],
    alpha: float = 1e-4,
):
    sample = _sample_of("whiten", x)
    return _whitening(sample, resolve(unflatten_config(chunk_sizes, tile_sizes, mixing, alpha), sample))


def _whitening(sample: Sample, config: WhiteningConfig) -> _Plan:
    largest_tile = max((th * tw for th, tw in config.tile_sizes), default=0)
    return _Plan(sample[:3], lambda backend, samples: backend.whiten(samples, config), tile_size=largest_tile)


def _project_2os(x: Tensor, lower: Tensor, upper: Tensor) -> _Plan:
    size = _flat_size_of("project_2os", x)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    for name, table in (("lower", lower), ("upper", upper)):
        if table.dtype != dtype:
            _check_dtype(
                "project_2os", table, (dtype,), f"{name} (for {str(x.dtype).removeprefix('torch.')} x)"
            )
        if table.device != x.device:
            raise ValueError(f"project_2os: {name} is on {table.device}, x on {x.device}")
        if table.dim() != 2:
            raise ValueError(f"project_2os: {name} must be (M, D), got {tuple(table.shape)}")
    if lower.shape != upper.shape:
        raise ValueError(
            f"project_2os: lower {tuple(lower.shape)} and upper {tuple(upper.shape)} must have one shape"
        )
    if lower.numel() != size:
        raise ValueError(
            f"project_2os: tables of {lower.shape[0]}x{lower.shape[1]} bounds do not fit samples of {size} values; "
            f"M*D must be {size}"
        )
    if lower.stride() == upper.stride():
        return _Plan(
            (size,), lambda backend, samples, lower, upper: backend.project_2os(samples, lower, upper)
        )
    # clone and not contiguous(), which leaves the stride of a dimension of size 1 as it is
    clone = partial(torch.clone, memory_format=torch.contiguous_format)
    return _Plan((size,), lambda backend, samples, *tables: backend.project_2os(samples, *map(clone, tables)))


def _project_tile_stats(x: Tensor, tile: Sequence[int], chunk_sizes: Sequence[int], alpha: float = 1e-4):
    op = "project_tile_stats"
    sample = _sample_of(op, x)
    pair = _pair(op, tile)
    check_tile(op, pair, sample)
    check_alpha(op, alpha)
    sizes = tuple(int(d) for d in chunk_sizes)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"{op}: chunk_sizes must be positive and not empty, got {list(sizes)}")
    return _Plan(
        sample[:3],
        lambda backend, samples: backend.project_tile_stats(samples, pair, sizes, alpha),
        tile_size=math.prod(pair),
    )


def _project_wgnc(x: Tensor, block_size: int = 16) -> _Plan:
    size = _flat_size_of("project_wgnc", x)
    _check_even("project_wgnc", size)
    _check_block_size("project_wgnc", block_size, size // 2)
    return _Plan(
        (size,), lambda backend, samples: backend.project_wgnc(samples, block_size), block_size=block_size
    )


def _project_wgnc_blocks(y: Tensor, block_size: int = 16) -> _Plan:
    size = _flat_size_of("project_wgnc_blocks", y, "y", _COMPLEX)
    _check_block_size("project_wgnc_blocks", block_size, size)
    return _Plan(
        (size,),
        lambda backend, samples: backend.project_wgnc_blocks(samples, block_size),
        block_size=block_size,
    )


def _compact_fourier(x: Tensor, inverse: bool = False) -> _Plan:
    size = _flat_size_of("compact_fourier", x)
    _check_even("compact_fourier", size)
    return _Plan((size,), lambda backend, samples: backend.compact_fourier(samples, inverse))


def _butterfly(x: Tensor, tile: Sequence[int], steps: int, inverse: bool = False) -> _Plan:
    sample = _sample_of("butterfly", x)
    pair = _pair("butterfly", tile)
    check_tile("butterfly", pair, sample, even=True)
    if steps < 0:
        raise ValueError(f"butterfly: steps must not be negative, got {steps}")
    return _Plan(sample[:3], lambda backend, samples: backend.butterfly(samples, pair, steps, inverse))


def _hadamard_transform(x: Tensor, scale: float = 1.0) -> _Plan:
    _check_dtype("hadamard_transform", x, _REAL)
    if x.dim() < 1 or x.shape[-1] == 0:
        raise ValueError(f"hadamard_transform: the last dimension of x is missing or empty: {tuple(x.shape)}")
    return _Plan((int(x.shape[-1]),), lambda backend, samples: backend.hadamard_transform(samples, scale))


def flatten_config(config: WhiteningConfig) -> tuple[list[int], list[int], list[int], float]:
    """A configuration as the arguments of `whiten_config`."""
    return (
        list(config.chunk_sizes),
        [n for tile in config.tile_sizes for n in tile],
        [n for tile, repeats in config.mixing for n in (*tile, repeats)],
        config.alpha,
    )


def unflatten_config(
    chunk_sizes: Sequence[int], tile_sizes: Sequence[int], mixing: Sequence[int], alpha: float
) -> WhiteningConfig:
    """Inverse of `flatten_config`."""
    if len(tile_sizes) % 2 or len(mixing) % 3:
        raise ValueError(
            "whiten_config: tile_sizes lists pairs th, tw and mixing triples th, tw, repeats, "
            f"got {len(tile_sizes)} and {len(mixing)} numbers"
        )
    return WhiteningConfig(
        tuple(chunk_sizes),
        tuple(zip(tile_sizes[0::2], tile_sizes[1::2], strict=True)),
        tuple(zip(zip(mixing[0::3], mixing[1::3], strict=True), mixing[2::3], strict=True)),
        alpha,
    )


_register("whiten", _whiten)
_register("whiten_config", _whiten_config)
_register("project_2os", _project_2os, num_tables=2)
_register("project_tile_stats", _project_tile_stats)
_register("project_wgnc", _project_wgnc)
_register("project_wgnc_blocks", _project_wgnc_blocks)
_register("compact_fourier", _compact_fourier)
_register("butterfly", _butterfly)
_register("hadamard_transform", _hadamard_transform)

for _name in (
    "whiten",
    "whiten_config",
    "project_2os",
    "project_tile_stats",
    "project_wgnc",
    "project_wgnc_blocks",
):
    _no_gradient(_name)

# Orthogonal transforms: the gradient is the transform the other way; Walsh-Hadamard is symmetric.


def _keep_arguments(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.arguments = inputs[1:]


def _compact_fourier_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (inverse,) = ctx.arguments
    return torch.ops.noisetilt.compact_fourier(grad, not inverse), None


def _butterfly_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    tile, steps, inverse = ctx.arguments
    return torch.ops.noisetilt.butterfly(grad, tile, steps, not inverse), None, None, None


def _hadamard_transform_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (scale,) = ctx.arguments
    return torch.ops.noisetilt.hadamard_transform(grad, scale), None


for _name, _backward in (
    ("compact_fourier", _compact_fourier_backward),
    ("butterfly", _butterfly_backward),
    ("hadamard_transform", _hadamard_transform_backward),
):
    torch.library.register_autograd(
        f"noisetilt::{_name}", _backward, setup_context=_keep_arguments, lib=_library_impl
    )
