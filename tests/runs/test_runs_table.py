"""Estimates, and the table of a comparison."""

import math

import pytest

from noisetilt_kernels.rewards import parse_rewards
from noisetilt_kernels.runs.entry import Entry, parse_entries, runs_of
from noisetilt_kernels.runs.folder import Outcome, Results
from noisetilt_kernels.runs.settings import Settings
from noisetilt_kernels.runs.statistics import Estimate, estimate
from noisetilt_kernels.runs.table import Row, markdown, tabulate
from noisetilt_kernels.sampling.methods import Method, parse_method


def test_estimates_use_students_quantile() -> None:
    one = estimate([1.0, 2.0, 3.0, 4.0, math.nan])
    assert (one.mean, one.count) == (2.5, 4)
    # 3.182 is Student's 97.5 % quantile of 3 degrees of freedom
    assert one.half_width == pytest.approx(3.18245 * math.sqrt(5 / 3) / 2, rel=1e-5)
    assert math.isnan(estimate([1.0]).half_width) and math.isnan(estimate([]).mean)
    assert str(Estimate(0.51234, 0.0123, 9)) == "0.512 \N{PLUS-MINUS SIGN} 0.012"
    assert f"{Estimate(0.51234, 0.0123, 9):+}" == "+0.512 \N{PLUS-MINUS SIGN} 0.012"
    assert str(Estimate(12.6, 3.21, 9)) == "12.6 \N{PLUS-MINUS SIGN} 3.2"
    assert str(Estimate(1.0, 0.0, 9)) == "1"


def test_table_of_unfinished_runs_counts_whole_groups_and_pairs() -> None:
    def results(rewards: dict[int, float]) -> Results:
        return Results({i: Outcome(i, "", r, {}) for i, r in rewards.items()}, {})

    first, second = parse_method("base:steps=5"), parse_method("ntrk:steps=5")
    rows = tabulate(
        {first: results({0: 1.0, 1: 2.0, 3: 8.0}), second: results({1: 5.0, 2: 9.0})},
        [Entry(first), Entry(first, 2), Entry(second), Entry(second, 2)],
        count=2,
        names=[],
    )
    # of the second round of `first`, particle 3 is finished, and particle 2 is not
    assert [row.scores["reward"].mean for row in rows[:3]] == [1.5, 8.0, 5.0]
    assert [row.scores["reward"].count for row in rows] == [2, 1, 1, 0]
    assert rows[2].differences["reward"].mean == 3.0  # of particle 1, which both have
    assert rows[3].differences["reward"].count == 0
    assert math.isnan(rows[0].seconds)
    # a particle that only the second method has is in no difference
    runs = {first: results({1: 2.0}), second: results({0: 9.0, 1: 5.0})}
    difference = tabulate(runs, [Entry(first), Entry(second)], count=2, names=[])[1].differences["reward"]
    assert (difference.mean, difference.count) == (3.0, 1)


def test_table_chooses_the_best_by_reward_and_pairs_differences() -> None:
    def results(rewards: list[float], judged: list[float]) -> Results:
        pairs = enumerate(zip(rewards, judged, strict=True))
        outcomes = {i: Outcome(i, "", r, {"judge": j}) for i, (r, j) in pairs}
        return Results(outcomes, {i: 10.0 + i for i in outcomes})

    first, second = parse_method("base:steps=5"), parse_method("ntrk:steps=5")
    third = parse_method("svdd:steps=5,candidates=2")
    rows = tabulate(
        {
            first: results([1, 3, 2, 0], [0, 1, 1, 0]),
            second: results([2, 4, 5, math.nan], [0, 0, 1, 1]),
            third: results([9, 7], [1, 1]),
        },
        [Entry(first), Entry(first, 2), Entry(second), Entry(second, 2), Entry(third)],
        count=2,
        names=["judge"],
    )
    assert [(row.method, row.best_of, row.nfe) for row in rows] == [
        (first, 1, 5),
        (first, 2, 10),
        (second, 1, 5),
        (second, 2, 10),
        (third, 1, 9),
    ]
    assert rows[0].differences == {} == rows[1].differences
    # a round has particles 0 and 1; the second round 2 and 3
    assert [row.scores["reward"].mean for row in rows] == [2.0, 2.5, 3.0, 4.5, 8.0]
    assert [row.scores["judge"].mean for row in rows] == [0.5, 1.0, 0.0, 0.5, 1.0]
    # 5 NFE are compared with 5, 10 and 9 with 10
    assert [row.differences["reward"].mean for row in rows[2:]] == [1.0, 2.0, 5.5]
    assert rows[3].differences["judge"].mean == -0.5
    # the steps of particles 0 and 2 together took 22 seconds, those of 1 and 3 24
    assert [row.seconds for row in rows] == [10.5, 23.0, 10.5, 23.0, 10.5]
    header, line, *cells = markdown(rows).splitlines()
    assert header == "| method | NFE | reward | judge | reward, difference | judge, difference |"
    assert len(cells) == 5 and all(cell.count("|") == line.count("|") for cell in cells)


def test_entries_of_a_method_and_the_runs_that_they_need() -> None:
    entries = [
        *parse_entries("base", [1, 4]),
        *parse_entries("ntrk:best_of=2,rho=0.1", [1, 4]),
        *parse_entries("ntrk:rho=0.1,best_of=3", [1]),
    ]
    base, ntrk = Method("base"), Method("ntrk", {"rho": 0.1})
    assert entries == [Entry(base, 1), Entry(base, 4), Entry(ntrk, 2), Entry(ntrk, 3)]
    assert [entry.nfe for entry in entries] == [25, 100, 50, 75]
    settings = Settings("digits", ("a 1", "a 2"), base, parse_rewards("brightness"), particles=3)
    runs = runs_of(settings, entries)
    assert {method: run.rounds for method, run in runs.items()} == {base: 4, ntrk: 3}
    assert runs[ntrk].count == 18 and runs[ntrk].nfe == 18 * 25
    assert runs[ntrk].particle_prompts == 3 * (3 * ["a 1"] + 3 * ["a 2"])
    assert runs[ntrk].particles_of(1) == [3, 4, 5, 9, 10, 11, 15, 16, 17]
    for wrong in ("0", "1.5", "two"):
        with pytest.raises(ValueError, match=f"best_of must be a positive integer, got {wrong}"):
            parse_entries(f"base:best_of={wrong}", [1])


def test_methods_with_other_numbers_of_evaluations_share_a_line() -> None:
    for text, line in {
        "base:steps=50": "base",
        "svdd:candidates=8": "svdd",
        "das:copies=4,alpha=0.01": "das:alpha=0.01",
        "psi:alpha=0.1,chains=1,burn_in=3,kept=9": "psi:alpha=0.1",
        "ntrk:start=pcnl,start_iterations=9,rho=0.1": "ntrk:start=pcnl,rho=0.1",
        "dno:iterations=3,steps=5,lr=0.1": "dno:lr=0.1",
    }.items():
        method = parse_method(text)
        assert Row(method, 1, method.nfe, {}, {}).line == line
