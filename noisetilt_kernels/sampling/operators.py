"""Operators that turn a gradient into noise, by name (NoiseTilt sections B.5 and B.7).

| name | result for a gradient |
|---|---|
| "w" | a nearby typical noise, by confidence intervals: `torch.ops.noisetilt.whiten` |
| "2os+tiles" | the first part of "w": values and statistics of tiles, without the other domains |
| "2os" | the first part of that: order statistics of the values |
| "wgnc" | the nearest noise with exact norms of spectral blocks: `torch.ops.noisetilt.project_wgnc` |
| "norm" | the gradient scaled to norm sqrt(N) |
| "identity" | the gradient itself |
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..backends.tables import NORMAL, cached_table
from ..checks import check_choice, shown
from ..config import preset
from ..python_ref import identity, norm_projection

Operator = Callable[[Tensor], Tensor]
"""Function of latents (B, *shape) -> the same shape. No entry changes the bits of another one."""


def _whiten(x: Tensor) -> Tensor:
    return torch.ops.noisetilt.whiten(x)


def _project_2os(x: Tensor) -> Tensor:
    config = preset("auto", x.shape)
    if x.is_meta:  # only the checks: a table of a video takes seconds
        return x
    values = x.flatten(1)
    for chunk_size in config.chunk_sizes:
        num_chunks = values.shape[1] // chunk_size
        table = cached_table(num_chunks, chunk_size, config.alpha, NORMAL, x.dtype, x.device)
        values = torch.ops.noisetilt.project_2os(values, table.lower, table.upper)
    return values.view_as(x)


def _project_2os_and_tiles(x: Tensor) -> Tensor:
    config = preset("auto", x.shape)
    x = _project_2os(x)
    for tile in config.tile_sizes:
        x = torch.ops.noisetilt.project_tile_stats(x, tile, config.chunk_sizes, config.alpha)
    return x


def _project_wgnc(x: Tensor) -> Tensor:
    return torch.ops.noisetilt.project_wgnc(x.flatten(1)).view_as(x)


def _norm_one_by_one(x: Tensor) -> Tensor:
    # One at a time, because threads may split a sum over several rows differently.
    return torch.cat([norm_projection(latent) for latent in x.split(1)])


_OPERATORS: dict[str, Operator] = {
    "w": _whiten,
    "2os+tiles": _project_2os_and_tiles,
    "2os": _project_2os,
    "wgnc": _project_wgnc,
    "norm": _norm_one_by_one,
    "identity": identity,
}

OPERATORS = tuple(_OPERATORS)
"""Names of the operators."""

TILED = ("w", "2os+tiles")
"""Names of the operators that cut a latent into tiles, with the preset "auto"."""


def check_operator(function: str, operator: str | Operator) -> None:
    """Raise ValueError for an unknown name, or TypeError for what is neither a name nor a function."""
    if isinstance(operator, str):
        check_choice(function, "operator", operator, OPERATORS)
    elif not callable(operator):
        raise TypeError(
            f"{function}: operator must be a name or a function of latents (B, *shape), got {shown(operator)}"
        )


def operator_by_name(function: str, operator: str | Operator, shape: tuple[int, ...]) -> Operator:
    """Return the named operator for latents (B, *shape), or a checked form of a given function.

    Raises:
        ValueError: the name is unknown, or the operator does not accept this shape. The checked function
            raises it if the given one returns another shape.
        TypeError: the operator is neither a name nor a function.
    """
    check_operator(function, operator)
    if not isinstance(operator, str):
        return partial(_checked, function, operator)
    try:
        _OPERATORS[operator](torch.empty((1, *shape), device="meta"))  # only the checks of the operator
    except ValueError as error:
        raise ValueError(
            f"{function}: operator {operator!r} does not take latents of shape {shape}: {error}"
        ) from error
    return _OPERATORS[operator]


def _checked(function: str, operator: Operator, x: Tensor) -> Tensor:
    """Return operator(x), of the shape and dtype of x."""
    result = operator(x.clone())  # which may work in place
    if not isinstance(result, Tensor) or result.shape != x.shape:
        got = tuple(result.shape) if isinstance(result, Tensor) else shown(result)
        raise ValueError(f"{function}: operator must return a tensor {tuple(x.shape)}, got {got}")
    return result.to(x)
