"""Pictures and tables of runs: headings of contact sheets, plots in which nothing is hidden, yes and no."""

import io
import math
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageFont

from noisetilt_kernels.runs import contact_sheet as sheets
from noisetilt_kernels.runs.contact_sheet import contact_sheet
from noisetilt_kernels.runs.plots import draw_comparison, figure_png
from noisetilt_kernels.runs.statistics import estimate
from noisetilt_kernels.runs.table import Row, markdown
from noisetilt_kernels.sampling.methods import parse_method

METHODS = ["ntrk:operator=w", "ntrk:operator=wgnc", "ntrk:operator=identity", "dps:strength=25", "base"]


def rows(best_of: tuple[int, ...], answers: tuple[float, ...] = (1, 0, 1, 1)) -> list[Row]:
    """Return rows with the same results for every method."""
    methods = list(map(parse_method, METHODS))
    scores = {"reward": estimate([0.2, 0.3, 0.4]), "judge": estimate(answers)}
    return [Row(method, n, n * method.nfe, scores, {}) for n in best_of for method in methods]


@pytest.mark.parametrize("best_of", [(1,), (1, 2, 4)])
def test_equal_results_are_all_seen(best_of: tuple[int, ...]) -> None:
    figure = draw_comparison(rows(best_of), ["judge"], "brightness")
    picture = Image.open(io.BytesIO(figure_png(figure))).convert("RGB")
    pixels = np.asarray(picture, dtype=int)
    for panel in figure.axes:
        box = panel.get_window_extent()
        inside = pixels[
            int(picture.height - box.y1) : int(picture.height - box.y0), int(box.x0) : int(box.x1)
        ]
        for index in range(len(METHODS)):
            color = np.array(matplotlib.colormaps["tab20"](2 * index)[:3]) * 255
            seen = (abs(inside - color).max(axis=-1) < 12).sum()
            assert seen >= 12, (panel.get_title(), METHODS[index], seen)


def test_methods_with_equal_nfe_have_rows_and_no_axis_of_nfe() -> None:
    figure = draw_comparison(rows((1,)), [], "brightness")
    (panel,) = figure.axes
    assert [label.get_text() for label in panel.get_yticklabels()] == METHODS
    assert panel.get_xlabel() == "brightness" and "25 NFE" in panel.get_title()
    assert panel.get_ylim()[0] > panel.get_ylim()[1]  # the first method is at the top
    assert not figure.legends


def test_only_equal_results_are_moved() -> None:
    panel = draw_comparison(rows((1, 2)), [], "brightness").axes[0]
    assert "equal results are drawn beside each other" in panel.get_xlabel()
    different = [
        replace(row, scores={"reward": estimate([0.1 * i, 0.2])}) for i, row in enumerate(rows((1, 2)))
    ]
    panel = draw_comparison(different, [], "brightness").axes[0]
    assert panel.get_xlabel() == "function evaluations (NFE) per image"
    assert all(container[0].get_transform() == panel.transData for container in panel.containers)


def test_ticks_of_nfe_do_not_overlap() -> None:
    table = [
        *rows((1, 2, 4)),
        *(Row(parse_method("svdd:candidates=2"), 1, 49, row.scores, {}) for row in rows((1,))),
    ]
    panel = draw_comparison(table, ["judge"], "brightness").axes[0]
    assert list(panel.get_xticks()) == [25, 49, 100] and not len(panel.get_xticks(minor=True))


def test_answers_yes_or_no_are_counted() -> None:
    assert estimate([1, 1, 1]).share == "3 of 3" and estimate([0, 0, math.nan]).share == "0 of 2"
    assert estimate([1, 1, 0, 1]).share == "3 of 4 (0.75 \N{PLUS-MINUS SIGN} 0.80)"
    assert not estimate([0.5, 1]).yes_or_no and not estimate([math.nan]).yes_or_no
    table = markdown(rows((1,), (1, 1)))
    assert "| 2 of 2 |" in table and "of 3" not in table
    other = Row(parse_method("base:steps=3"), 1, 3, {**rows((1,))[0].scores, "judge": estimate([0.5, 1])}, {})
    assert " of " not in markdown([*rows((1,), (1, 1)), other])  # one column, one form


def test_columns_have_headings_in_their_width(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    files = [tmp_path / "white.png"] * 3
    titles = ["a handwritten seven", "Supercalifragilisticexpialidocious " * 20, "x"]
    plain = contact_sheet([files], ["row"], cell=(96, 96))
    sheet = contact_sheet([files], ["row"], cell=(96, 96), column_titles=titles)
    added = sheet.height - plain.height
    assert added > 0
    assert np.array_equal(np.asarray(sheet)[added:], np.asarray(plain))
    heading = np.asarray(sheet.convert("L"))[:added]
    for column in range(3):
        left = 6 + column * 102
        assert heading[:, left : left + 96].min() < 128
        assert heading[:, left + 97 : left + 101].min() == 255
    font = ImageFont.load_default(13)
    assert sheets._wrap("a handwritten seven", font, 96) == "a handwritten\nseven"
    assert sheets._wrap("a b " * 100, font, 96).count("\n") == 2
    assert sheets._wrap("a b " * 100, font, 96).endswith("...")
    assert sheets._wrap("", font, 96) == ""
