"""Table of a comparison: means with confidence intervals, and paired differences."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..sampling.methods import Method
from ..sampling.result import best_index
from .entry import Entry
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
        differences: mean paired differences to a row of the first method, see `tabulate`; empty for rows of
            the first method.
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

    @property
    def line(self) -> str:
        """Label of the plotted line: the method without its numbers that set the NFE, such as copies."""
        return self.method.text_without(self.method.nfe_arguments)

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
    outcomes: Mapping[Method, Sequence[Outcome]], entries: Iterable[Entry], count: int, names: Sequence[str]
) -> list[Row]:
    """Return a row for every entry.

    Differences are to a row of the first entry's method: to that with the nearest NFE by ratio.

    Args:
        outcomes: outcomes of all particles in order, by method.
        entries: methods with their numbers n. A row has `count` chosen particles: of particle i of the first
            n rounds the one with the best reward.
        count: number of particles in a round.
        names: names of the scores to show beside the steering reward.
    """
    chosen = {entry: _choose_best(outcomes[entry.method], entry.best_of, count, names) for entry in entries}
    first = [entry for entry in chosen if entry.method == next(iter(chosen)).method]
    rows = []
    for entry, scores in chosen.items():
        near = min(first, key=lambda other: abs(math.log(other.nfe / entry.nfe)))
        differences = {
            name: estimate(a - b for a, b in zip(values, chosen[near][name], strict=True))
            for name, values in scores.items()
            if entry not in first
        }
        means = {name: estimate(values) for name, values in scores.items()}
        rows.append(Row(entry.method, entry.best_of, entry.nfe, means, differences))
    return rows


def _choose_best(
    outcomes: Sequence[Outcome], n: int, count: int, names: Sequence[str]
) -> dict[str, list[float]]:
    """Return the scores of the best of n particles, {name: `count` values}."""
    groups = (outcomes[start : n * count : count] for start in range(count))
    best = [group[best_index([one.reward for one in group])] for group in groups]
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
