"""Parts of `whiten` on each backend, in the order in which its pipeline runs them."""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import compiled, cpu, cuda, reference, triton
from ..config import WhiteningConfig
from ..python_ref import whitening


class Part(NamedTuple):
    """A part of `whiten`.

    Attributes:
        name: such as "project, spectrum". The names are the same on each backend.
        run: function of samples (B, C, H, W) that returns samples.
        copies: True if the part works in place within `whiten`, so that `run` copies its input first.
    """

    name: str
    run: Callable[[Tensor], Tensor]
    copies: bool = False


def parts_of_whiten(backend: ModuleType, x: Tensor, config: WhiteningConfig) -> list[Part]:
    """Return the parts of `whiten` on a backend. Applied in order, they return the bits of `whiten`.

    Args:
        backend: module of `noisetilt_kernels.backends`.
        x: contiguous samples (B, C, H, W), float32 or float64, with the shape, dtype and device of all.
        config: resolved configuration.
    """
    finite_or_nan, project, fourier, mix, copies = _FUNCTIONS[backend](x, config)
    parts = [
        Part("finite or NaN", finite_or_nan),
        Part("project, values", project, copies),
        Part("Fourier", partial(fourier, inverse=False)),
        Part("project, spectrum", project, copies),
        Part("inverse Fourier", partial(fourier, inverse=True)),
        *(
            Part(f"mixing {tile[0]}x{tile[1]}, {steps} steps", partial(mix, tile=tile, repeats=steps), copies)
            for tile, steps in config.mixing
        ),
    ]
    if backend is cpu and cpu.suits_one_thread(x.numel(), x[0].numel()):
        return [part._replace(run=cpu.without_openmp(part.run)) for part in parts]
    return parts


class _Functions(NamedTuple):
    finite_or_nan: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    fourier: Callable[..., Tensor]
    mix: Callable[..., Tensor]
    in_place: bool


def _of_kernels(backend: ModuleType, x: Tensor, config: WhiteningConfig) -> _Functions:
    """Return the stages of the operator `_whiten`."""
    ops = torch.ops.noisetilt
    sizes = config.chunk_sizes
    projection = backend._projections(x, sizes, sizes, config.tile_sizes, config.alpha).handle

    def project(x: Tensor) -> Tensor:
        x = compiled.copy_of(x)
        ops._project_.default(x, projection)
        return x

    def mix(x: Tensor, tile: tuple[int, int], repeats: int) -> Tensor:
        x = compiled.copy_of(x)
        ops._project_mixing_domains_.default(x, projection, [*tile, repeats])
        return x

    def fourier(x: Tensor, inverse: bool) -> Tensor:
        return backend.compact_fourier(x.flatten(1), inverse).view_as(x)

    return _Functions(ops._finite_or_nan.default, project, fourier, mix, True)


def _of_triton(x: Tensor, config: WhiteningConfig) -> _Functions:
    from ..backends.triton import operations
    from ..backends.triton import whitening as kernels
    from ..backends.triton.tile_stats import rescale

    sizes = config.chunk_sizes
    projection = operations._projections(x, sizes, sizes, config.tile_sizes, config.alpha)
    return _Functions(
        kernels.finite_or_nan,
        lambda x: rescale(*kernels.project(x, projection)),
        lambda x, inverse: triton.compact_fourier(x.flatten(1), inverse).view_as(x),
        lambda x, tile, repeats: kernels.project_mixing_domain(x, projection, tile, repeats),
        False,
    )


def _of_reference(x: Tensor, config: WhiteningConfig) -> _Functions:
    constraints = config.chunk_sizes, config.tile_sizes, reference.tables_like(x, config.alpha)
    return _Functions(
        whitening.finite_or_nan,
        lambda x: whitening.project(x, *constraints),
        lambda x, inverse: reference.compact_fourier(x.flatten(1), inverse).view_as(x),
        lambda x, tile, repeats: whitening.project_mixing_domain(x, tile, repeats, *constraints),
        False,
    )


_FUNCTIONS: dict[ModuleType, Callable[[Tensor, WhiteningConfig], _Functions]] = {
    cpu: partial(_of_kernels, cpu),
    cuda: partial(_of_kernels, cuda),
    triton: _of_triton,
    reference: _of_reference,
}
