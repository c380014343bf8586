"""The operators that make noise of a gradient, by name (NoiseTilt section B.7).

| name | what it keeps of the gradient |
|---|---|
| "w" | the nearest typical noise, by confidence intervals: `torch.ops.noisetilt.whiten` |
| "wgnc" | the nearest noise with exact norms of spectral blocks: `torch.ops.noisetilt.project_wgnc` |
| "norm" | the direction, at norm sqrt(N) |
| "identity" | everything, at whatever norm it has |
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import check_choice
from ..python_ref import identity, norm_projection

Operator = Callable[[Tensor], Tensor]
"""Latents (B, *shape) -> latents of that shape; each on its own, with the bits that it has alone."""


def _whiten(x: Tensor) -> Tensor:
    return torch.ops.noisetilt.whiten(x)


def _project_wgnc(x: Tensor) -> Tensor:
    return torch.ops.noisetilt.project_wgnc(x.flatten(1)).view_as(x)


def _norm_one_by_one(x: Tensor) -> Tensor:
    # one latent at a time, as a sum over one row may be split among threads otherwise than over several rows
    return torch.cat([norm_projection(latent) for latent in x.split(1)])


_OPERATORS: dict[str, Operator] = {
    "w": _whiten,
    "wgnc": _project_wgnc,
    "norm": _norm_one_by_one,
    "identity": identity,
}

OPERATORS = tuple(_OPERATORS)
"""Names of the whitening operators."""


def operator_by_name(function: str, name: str, shape: tuple[int, ...]) -> Operator:
    """The named operator, for latents (B, *shape).

    Raises:
        ValueError: there is none of that name, or it does not take latents of that shape; the message names
            what does.
    """
    check_choice(function, "operator", name, OPERATORS)
    operator = _OPERATORS[name]
    try:
        operator(torch.empty((1, *shape), device="meta"))  # the checks of the operators, without the work
    except ValueError as error:
        raise ValueError(
            f"{function}: operator {name!r} does not take latents of shape {shape}: {error}"
        ) from error
    return operator
