"""Estimates, and the table of a comparison."""

import math

import pytest

from noisetilt_kernels.runs.folder import Outcome
from noisetilt_kernels.runs.statistics import Estimate, estimate
from noisetilt_kernels.runs.table import markdown, tabulate
from noisetilt_kernels.sampling.methods import parse_method


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


def test_table_chooses_the_best_by_reward_and_pairs_differences() -> None:
    def outcomes(rewards: list[float], judged: list[float]) -> list[Outcome]:
        return [Outcome(i, "", r, {"judge": j}) for i, (r, j) in enumerate(zip(rewards, judged, strict=True))]

    first, second = parse_method("base:steps=5"), parse_method("ntrk:steps=5")
    rows = tabulate(
        {
            first: outcomes([1, 3, 2, 0], [0, 1, 1, 0]),
            second: outcomes([2, 4, 5, math.nan], [0, 0, 1, 1]),
        },
        particles=2,
        best_of=[1, 2],
        names=["judge"],
    )
    assert [(row.method, row.best_of, row.nfe) for row in rows] == [
        (first, 1, 5),
        (second, 1, 5),
        (first, 2, 10),
        (second, 2, 10),
    ]
    assert rows[0].differences == {} and rows[0].scores["reward"].mean == 1.5
    assert rows[1].differences["reward"].mean == pytest.approx((1 + 1 + 3) / 3)
    assert rows[2].scores["reward"].mean == 2.5 and rows[2].scores["judge"].mean == 1.0
    assert rows[3].scores["reward"].mean == 4.5 and rows[3].scores["judge"].mean == 0.5
    assert rows[3].differences["judge"].mean == -0.5
    header, line, *cells = markdown(rows).splitlines()
    assert header == "| method | NFE | reward | judge | reward, difference | judge, difference |"
    assert len(cells) == 4 and all(cell.count("|") == line.count("|") for cell in cells)
    with pytest.raises(ValueError, match="best of 3 needs a number of seeds that 3 divides, got 2"):
        tabulate({first: []}, 2, [3], [])
