"""Table of a comparison: means with confidence intervals, and paired differences."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..sampling.methods import Method
from ..sampling.result import best_index
from .diversity import DiversitySpec
from .entry import Entry
from .folder import Outcome, Results
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
        seconds: mean time that the steps of the n particles took; NaN if it is not known.
    """

    method: Method
    best_of: int
    nfe: int
    scores: dict[str, Estimate]
    differences: dict[str, Estimate]
    seconds: float = math.nan

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
            "seconds": None if math.isnan(self.seconds) else self.seconds,
            "scores": {name: one.to_json() for name, one in self.scores.items()},
            "differences": {name: one.to_json() for name, one in self.differences.items()},
        }


def tabulate(
    results: Mapping[Method, Results],
    entries: Iterable[Entry],
    count: int,
    names: Sequence[str],
    diversity: Sequence[DiversitySpec] = (),
    particles: int = 1,
) -> list[Row]:
    """Return a row for every entry.

    Differences are to a row of the first entry's method: to that with the nearest NFE by ratio. Of runs that
    are not finished, only the particles count of which all n are.

    Args:
        results: finished particles by method.
        entries: methods with their numbers n. A row has up to `count` chosen particles: of particle i of the
            first n rounds the one with the best reward.
        count: number of particles in a round.
        names: names of the scores to show beside the steering reward.
        diversity: measures of diversity of the chosen particles to show after them. They are left out for
            prompts of which not all are finished.
        particles: number of particles of each prompt in a round, for these measures.
    """
    best = {entry: best_of(results[entry.method].outcomes, entry.best_of, count) for entry in entries}
    chosen = {
        entry: {
            **_scores(outcomes, names),
            **_diversity(outcomes, results[entry.method].features, count, diversity, particles),
        }
        for entry, outcomes in best.items()
    }
    first = [entry for entry in chosen if entry.method == next(iter(chosen)).method]
    rows = []
    for entry, scores in chosen.items():
        near = min(first, key=lambda other: abs(math.log(other.nfe / entry.nfe)))
        differences = {
            name: estimate(
                value - chosen[near][name][place]
                for place, value in values.items()
                if place in chosen[near][name]
            )
            for name, values in scores.items()
            if entry not in first
        }
        means = {name: estimate(values.values()) for name, values in scores.items()}
        for one in diversity:  # the distance of equal images is 0, which is not an answer no
            means[one.name] = replace(means[one.name], yes_or_no=False)
        times = results[entry.method].seconds
        seconds = estimate(
            math.fsum(times.get(particle, math.nan) for particle in _group(place, entry.best_of, count))
            for place in best[entry]
        ).mean
        rows.append(Row(entry.method, entry.best_of, entry.nfe, means, differences, seconds))
    return rows


def best_of(outcomes: Mapping[int, Outcome], n: int, count: int) -> dict[int, Outcome]:
    """Return the particle with the best reward of each group of n, by its place in a round.

    Args:
        outcomes: finished particles; a group with an unfinished one is left out.
        n: number of rounds.
        count: number of particles in a round.
    """
    groups = {place: _group(place, n, count) for place in range(count)}
    finished = {
        place: [outcomes[particle] for particle in group]
        for place, group in groups.items()
        if outcomes.keys() >= set(group)
    }
    return {place: group[best_index([one.reward for one in group])] for place, group in finished.items()}


def _group(place: int, n: int, count: int) -> range:
    """Return the particles at a place of the first n rounds."""
    return range(place, n * count, count)


def _scores(outcomes: Mapping[int, Outcome], names: Sequence[str]) -> dict[str, dict[int, float]]:
    """Return the scores by name and by place."""
    return {
        "reward": {place: one.reward for place, one in outcomes.items()},
        **{name: {place: one.parts[name] for place, one in outcomes.items()} for name in names},
    }


def _diversity(
    outcomes: Mapping[int, Outcome],
    features: Mapping[str, Tensor],
    count: int,
    diversity: Sequence[DiversitySpec],
    particles: int,
) -> dict[str, dict[int, float]]:
    """Return the measures of diversity by name and by number of the prompt."""
    places = (range(start, start + particles) for start in range(0, count, particles))
    sets = [
        [outcomes[place].particle for place in of_prompt] if outcomes.keys() >= set(of_prompt) else []
        for of_prompt in places
    ]
    return {one.name: one.values(features, sets) for one in diversity}


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table. Each mean has half of its 95 % confidence interval after it."""
    header, *lines = cells(rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def text(rows: Sequence[Row]) -> str:
    """Return the rows as an aligned text table."""
    lines = cells(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Return the lines of the table as text, the header first. A mean of no values is ""."""
    names = list(rows[0].scores)
    header = ["method", "NFE", *names, *(f"{name}, difference" for name in names)]
    lines = [header]
    shares = {name for name in names if all(row.scores[name].yes_or_no for row in rows)}
    for row in rows:
        means = [row.scores[name].share if name in shares else _text(row.scores[name]) for name in names]
        differences = [_text(row.differences[name], "+") if row.differences else "" for name in names]
        lines.append([row.label, str(row.nfe), *means, *differences])
    return lines


def _text(one: Estimate, sign: str = "") -> str:
    return format(one, sign) if one.count else ""
