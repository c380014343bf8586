"""Plots of a comparison. Needs matplotlib."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from .statistics import Estimate
from .table import Row

_MARKERS = "osD^vP*X<>"
_SHIFT = 4
"""Distance in points between lines that lie on each other."""

_EQUAL = 0.006
"""Part of an axis below which a difference cannot be seen."""


def draw_comparison(
    rows: Sequence[Row],
    held_out: Sequence[str],
    reward: str,
    *,
    names: Sequence[str] | None = None,
    titles: Mapping[str, str] = MappingProxyType({}),
) -> Figure:
    """Draw the plots of a comparison, with 95 % confidence intervals as bars.

    The first panel shows the reward against NFE with a line for each method. Methods that differ only in
    numbers that set the NFE share a line. If all rows have the same NFE, it shows a row for each method
    instead. If the time of every row is known, a panel shows the reward against seconds. A panel for each
    held-out reward shows it against the reward, with a point for each row. A method with the results of an
    earlier one is drawn beside it, so that both are seen.

    Args:
        rows: rows of the table.
        held_out: names of the held-out rewards.
        reward: title of the steering reward.
        names: name of the line of each row, in place of its method.
        titles: titles of the held-out rewards by name, where they have one.
    """
    one_nfe = len({row.nfe for row in rows}) == 1
    if names is None:
        names = [row.label if one_nfe else row.line for row in rows]
    by_method: dict[str, list[Row]] = {}
    for row, name in sorted(zip(rows, names, strict=True), key=lambda pair: pair[0].nfe):
        by_method.setdefault(name, []).append(row)
    timed = all(row.seconds > 0 for row in rows)
    count = 1 + timed + len(held_out)
    with default_style():
        figure = Figure(figsize=(5.2 * count, 5.4), dpi=100, layout="constrained")
        panels = figure.subplots(1, count, squeeze=False)[0]
        if one_nfe:
            _draw_rewards(panels[0], by_method)
            panels[0].set(xlabel=reward, title=f"Reward at {rows[0].nfe} NFE per image")
        else:
            panels[0].set(
                xlabel="function evaluations (NFE) per image", ylabel=reward, title="Reward against NFE"
            )
            _draw_lines(figure, panels[0], by_method, None, "-")
            _set_ticks(panels[0], [row.nfe for row in rows], base=2)
        if timed:
            panels[1].set(xlabel="measured seconds per image", ylabel=reward, title="Reward against time")
            _draw_lines(figure, panels[1], by_method, None, "none" if one_nfe else "-", seconds=True)
            _set_ticks(panels[1], [row.seconds for row in rows], base=10)
        for panel, name in zip(panels[1 + timed :], held_out, strict=True):
            panel.set(
                xlabel=reward,
                ylabel=f"{titles.get(name, name)} (held out)",
                title="Trade-off: up and to the right is better",
            )
            _draw_lines(figure, panel, by_method, name, ":")
        for panel in panels:
            panel.grid(alpha=0.3)
        if held_out or not one_nfe:
            handles, names = panels[0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside lower center", ncols=min(3, len(names)), fontsize=9)
    return figure


def _draw_rewards(panel: Axes, by_method: Mapping[str, Sequence[Row]]) -> None:
    """Draw the reward of each method in a row of its own, the first method at the top."""
    for index, (label, rows) in enumerate(by_method.items()):
        means, halves = _bars([row.scores["reward"] for row in rows])
        panel.errorbar(means, [label] * len(rows), xerr=halves, linestyle="none", **_style(index, label))
    panel.invert_yaxis()
    panel.margins(y=1 / (1 + len(by_method)))


def _set_ticks(panel: Axes, values: Sequence[float], base: int) -> None:
    """Make the horizontal axis logarithmic, with ticks at some of the values."""
    ticks = _ticks(values)
    panel.set_xscale("log", base=base)
    panel.set_xticks(ticks, [f"{tick}" if isinstance(tick, int) else f"{tick:.2g}" for tick in ticks])
    panel.minorticks_off()


def _draw_lines(
    figure: Figure,
    panel: Axes,
    by_method: Mapping[str, Sequence[Row]],
    held_out: str | None,
    linestyle: str,
    seconds: bool = False,
) -> None:
    """Draw a line for each method: a held-out reward against the reward, or without one the reward against
    NFE or seconds.
    """
    lines = {}
    for label, rows in by_method.items():
        y, y_halves = _bars([row.scores[held_out or "reward"] for row in rows])
        if held_out:
            x, x_halves = _bars([row.scores["reward"] for row in rows])
        else:
            x = [row.seconds if seconds else float(row.nfe) for row in rows]
            x_halves = [0.0] * len(rows)
        lines[label] = (x, y, x_halves, y_halves)
    places = _places([np.array([x, y]) for x, y, *_ in lines.values()])
    for index, (label, (x, y, x_halves, y_halves)) in enumerate(lines.items()):
        bars: dict[str, Any] = {"yerr": y_halves, "xerr": x_halves if held_out else None}
        drawn = panel.errorbar(x, y, **bars, linestyle=linestyle, **_style(index, label))
        shift = places[index] * _SHIFT / 72
        for artist in drawn.get_children() if shift else ():
            moved = ScaledTranslation(shift, -shift, figure.dpi_scale_trans)
            artist.set_transform(artist.get_transform() + moved)
    if any(places):
        panel.set_xlabel(f"{panel.get_xlabel()}\n(equal results are drawn beside each other)")


def _places(lines: Sequence[np.ndarray]) -> list[int]:
    """Return a place for each line (2, points), from 0; lines that lie on each other get different ones."""
    every = np.concatenate(lines, axis=1)
    visible = _EQUAL * np.ptp(every, axis=1, keepdims=True)
    places: list[int] = []
    for index, line in enumerate(lines):
        taken = {
            place
            for place, other in zip(places, lines[:index], strict=True)
            if line.shape == other.shape and (abs(line - other) <= visible).all()
        }
        places.append(next(place for place in range(len(lines)) if place not in taken))
    return places


def _bars(estimates: Sequence[Estimate]) -> tuple[list[float], list[float]]:
    return [one.mean for one in estimates], [one.half_width for one in estimates]


def _ticks(values: Iterable[float]) -> list[float]:
    """Return the values that are far enough apart for their labels on a logarithmic axis."""
    ticks: list[float] = []
    for value in sorted(values):
        if not ticks or value > 1.2 * ticks[-1]:
            ticks.append(value)
    return ticks


def _style(index: int, label: str) -> dict[str, Any]:
    """Return the style of a method. Later ones do not cover the markers of earlier ones: they are hollow."""
    return {
        # first the ten strong colours of the map, then the ten pale ones
        "color": matplotlib.colormaps["tab20"](2 * (index % 10) + index // 10 % 2),
        "marker": _MARKERS[index % len(_MARKERS)],
        "markerfacecolor": "none",
        "capsize": 3,
        "label": label,
    }


def figure_png(figure: Figure) -> bytes:
    """Return the figure as the bytes of a PNG file."""
    data = io.BytesIO()
    with default_style():
        figure.savefig(data, format="png")
    return data.getvalue()


@contextmanager
def default_style() -> Iterator[None]:
    """Use matplotlib's defaults; user settings (TeX, dark styles, tight boxes) would break the layout."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield
