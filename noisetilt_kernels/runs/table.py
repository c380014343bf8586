"""Table of a comparison: means with confidence intervals, and paired differences."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..sampling.methods import Method
from ..sampling.result import best_index
from .folder import Outcome
from .statistics import Estimate, estimate


@dataclass(frozen=True)
class Row:
    """Results of a method with best of n.

    Attributes:
        method: the sampler and its arguments.
        best_of: number n of particles from which the best one is chosen.
        nfe: forward passes of the model for each chosen particle.
        scores: mean scores of the chosen particles: "reward", the steering reward, and others by name.
        differences: mean paired differences to the first method with the same n; empty for the first method.
    """

    method: Method
    best_of: int
    nfe: int
    scores: dict[str, Estimate]
    differences: dict[str, Estimate]

    @property
    def label(self) -> str:
        """Label such as "ntrk:rho=0.1, best of 4"."""
        return f"{self.method}, best of {self.best_of}" if self.best_of > 1 else str(self.method)

    def to_json(self) -> dict[str, Any]:
        """Return the row in the form of comparison.json."""
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
    """Return a row for every method and every n of `best_of`.

    Args:
        outcomes: outcomes of all particles in order, by method; differences are to the first method.
        particles: number of particles for each prompt. They are split into groups of n, and the
            particle with the best reward of each group is chosen.
        best_of: divisors of `particles`.
        names: names of the scores to show beside the steering reward.

    Raises:
        ValueError: a number of `best_of` does not divide `particles`.
    """
    first, *_ = outcomes
    rows = []
    for n in best_of:
        chosen = {method: _choose_best(results, particles, n, names) for method, results in outcomes.items()}
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


def _choose_best(
    outcomes: Sequence[Outcome], particles: int, n: int, names: Sequence[str]
) -> dict[str, list[float]]:
    """Return the scores of the best of every n particles, {name: values}."""
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
    """Return the rows as a Markdown table. Each mean has half of its 95 % confidence interval after it."""
    header, *lines = _cells(rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def text(rows: Sequence[Row]) -> str:
    """Return the rows as an aligned text table."""
    lines = _cells(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    names = list(rows[0].scores)
    header = ["method", "NFE", *names, *(f"{name}, difference" for name in names)]
    lines = [header]
    shares = {name for name in names if all(row.scores[name].yes_or_no for row in rows)}
    for row in rows:
        cells = [row.scores[name].share if name in shares else str(row.scores[name]) for name in names]
        cells += [f"{row.differences[name]:+}" if row.differences else "" for name in names]
        lines.append([row.label, str(row.nfe), *cells])
    return lines
