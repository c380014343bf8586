"""The table of a comparison: means with confidence intervals, and paired differences."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..sampling.methods import Method
from ..sampling.result import best_index
from .folder import Outcome
from .statistics import Estimate, estimate


@dataclass(frozen=True)
class Row:
    """A method at some number of function evaluations.

    Attributes:
        method: the sampler and its options.
        best_of: how many particles the best one is chosen of.
        nfe: forwards of the model for each of the chosen.
        scores: "reward", which steered, and others by name, of the chosen.
        differences: the same, minus those of the first method of as many particles, pair by pair; empty for itself.
    """

    method: Method
    best_of: int
    nfe: int
    scores: dict[str, Estimate]
    differences: dict[str, Estimate]

    @property
    def label(self) -> str:
        """Such as "ntrk:rho=0.1, best of 4"."""
        return f"{self.method}, best of {self.best_of}" if self.best_of > 1 else str(self.method)

    def to_json(self) -> dict[str, Any]:
        """As comparison.json has it."""
        return {
            "method": str(self.method),
            "best_of": self.best_of,
            "nfe": self.nfe,
            "scores": {name: one.to_json() for name, one in self.scores.items()},
            "differences": {name: one.to_json() for name, one in self.differences.items()},
        }


def tabulate(
    outcomes: Mapping[Method, Sequence[Outcome]], particles: int, best_of: Iterable[int], names: Sequence[str]
) -> list[Row]:
    """A row for every method and every n of `best_of`.

    Args:
        outcomes: of every particle in order; differences are to the first method's.
        particles: for each prompt; those of a prompt are taken n by n, and the best of each n by reward is chosen.
        best_of: divisors of `particles`.
        names: of the single rewards to show beside what steered.
    """
    first, *_ = outcomes
    rows = []
    for n in best_of:
        chosen = {method: _choose(own, particles, n, names) for method, own in outcomes.items()}
        for method, scores in chosen.items():
            differences = {
                name: estimate(a - b for a, b in zip(values, chosen[first][name], strict=True))
                for name, values in scores.items()
                if method is not first
            }
            rows.append(
                Row(
                    method,
                    n,
                    n * method.nfe,
                    {name: estimate(values) for name, values in scores.items()},
                    differences,
                )
            )
    return rows


def _choose(
    outcomes: Sequence[Outcome], particles: int, n: int, names: Sequence[str]
) -> dict[str, list[float]]:
    """The scores of the best of every n particles: {name: values}."""
    if particles % n:
        raise ValueError(f"best of {n} needs a number of seeds that {n} divides, got {particles}")
    best = [
        outcomes[start + best_index([one.reward for one in outcomes[start : start + n]])]
        for start in range(0, len(outcomes), n)
    ]
    return {
        "reward": [one.reward for one in best],
        **{name: [one.parts[name] for one in best] for name in names},
    }


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; after each mean, half of its 95 % confidence interval."""
    header, *lines = _cells(rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def text(rows: Sequence[Row]) -> str:
    """The same, aligned."""
    lines = _cells(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    names = list(rows[0].scores)
    header = ["method", "NFE", *names, *(f"{name}, difference" for name in names)]
    lines = [header]
    for row in rows:
        cells = [str(row.scores[name]) for name in names]
        cells += [f"{row.differences[name]:+}" if row.differences else "" for name in names]
        lines.append([row.label, str(row.nfe), *cells])
    return lines
