"""Entries of a comparison: a method, and the number of images to choose the best from."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..sampling.methods import Method, split_method
from .settings import Settings


class Entry(NamedTuple):
    """Method of a comparison with best of n."""

    method: Method
    """The sampler and its arguments."""
    best_of: int = 1
    """Number n of images of which the one with the best reward is kept."""

    @property
    def nfe(self) -> int:
        """Number of function evaluations for each kept image."""
        return self.best_of * self.method.nfe


def parse_entries(text: str, best_of: Iterable[int]) -> list[Entry]:
    """Return the entries of a method such as "ntrk:rho=0.1" or "ntrk:rho=0.1,best_of=4".

    Args:
        text: the method, as `parse_method` reads it, with `best_of` as one more argument.
        best_of: numbers n of a method without `best_of`; there is an entry for each.

    Raises:
        ValueError: see `parse_method`, or `best_of` is not a positive integer.
    """
    name, arguments = split_method(text)
    given = arguments.pop("best_of", None)
    method = Method(name, arguments)
    if given is None:
        return [Entry(method, n) for n in best_of]
    if not isinstance(given, int) or given < 1:
        raise ValueError(f"best_of must be a positive integer, got {given}")
    return [Entry(method, given)]


def runs_of(settings: Settings, entries: Sequence[Entry]) -> dict[Method, Settings]:
    """Return the settings of the run of each method, which has a round for each image to choose from."""
    rounds = {
        entry.method: max(other.best_of for other in entries if other.method == entry.method)
        for entry in entries
    }
    return {method: replace(settings, method=method, rounds=n) for method, n in rounds.items()}
