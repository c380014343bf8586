"""Bounds tables of the user's on a GPU: examined once, and again after they have been changed in place."""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

Finding = TypeVar("Finding")


def raise_for_faults(nan: bool, crossed: bool) -> None:
    """Raises ValueError if a bound is NaN, or a lower one above its upper one."""
    if nan:
        raise ValueError("project_2os: lower and upper must not contain NaN")
    if crossed:
        raise ValueError("project_2os: lower must not exceed upper anywhere")


def check_tables(lower: Tensor, upper: Tensor) -> None:
    """`raise_for_faults` of tables on any device, for which the host waits."""
    nan = (lower.isnan() | upper.isnan()).any()
    raise_for_faults(*torch.stack([nan, (lower > upper).any()]).tolist())


class _Known(NamedTuple, Generic[Finding]):
    """What was found, of a lower table, with this upper one, in these versions of both."""

    upper: TensorWeakRef
    versions: tuple[int, int]
    finding: Finding


class Examined(Generic[Finding]):
    """`examine(lower, upper)`, called only for tables that are not known, or have changed since."""

    def __init__(self, examine: Callable[[Tensor, Tensor], Finding]) -> None:
        self._examine = examine
        self._known = WeakTensorKeyDictionary()  # lower: _Known

    def __call__(self, lower: Tensor, upper: Tensor) -> Finding:
        if lower.is_inference() or upper.is_inference():  # those have no version
            return self._examine(lower, upper)
        versions = lower._version, upper._version
        known: _Known[Finding] | None = self._known.get(lower)
        if known is None or known.versions != versions or known.upper() is not upper:
            known = _Known(TensorWeakRef(upper), versions, self._examine(lower, upper))
            self._known[lower] = known
        return known.finding
