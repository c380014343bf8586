"""Plots of a comparison. Needs matplotlib."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from .statistics import Estimate
from .table import Row

_MARKERS = "osD^vP*X<>"


def draw_comparison(rows: Sequence[Row], held_out: Sequence[str], reward: str) -> Figure:
    """Draw the plots of a comparison, with 95 % confidence intervals as bars.

    The first panel shows the reward against NFE with a line for each method. A panel for each held-out reward
    shows it against the reward, with a point for each row.
    """
    labels = list(dict.fromkeys(str(row.method) for row in rows))
    with default_style():
        figure = Figure(figsize=(5.2 * (1 + len(held_out)), 5.4), dpi=100, layout="constrained")
        panels = figure.subplots(1, 1 + len(held_out), squeeze=False)[0]
        for index, label in enumerate(labels):
            rows_of_method = [row for row in rows if str(row.method) == label]
            # first the ten strong colours of the map, then the ten pale ones
            style: dict[str, Any] = {
                "color": matplotlib.colormaps["tab20"](2 * (index % 10) + index // 10 % 2),
                "marker": _MARKERS[index % len(_MARKERS)],
                "label": label,
            }
            rewards = [row.scores["reward"] for row in rows_of_method]
            panels[0].errorbar([row.nfe for row in rows_of_method], *_bars(rewards), capsize=3, **style)
            for panel, name in zip(panels[1:], held_out, strict=True):
                _trade_off(panel, rewards, [row.scores[name] for row in rows_of_method], style)
        panels[0].set(
            xlabel="function evaluations (NFE) per image", ylabel=reward, title="Reward against NFE"
        )
        if len({row.nfe for row in rows}) > 1:
            panels[0].set_xscale("log", base=2)
            panels[0].xaxis.set_major_formatter(ScalarFormatter())
        for panel, name in zip(panels[1:], held_out, strict=True):
            panel.set(
                xlabel=reward, ylabel=f"{name} (held out)", title="Trade-off: up and to the right is better"
            )
        for panel in panels:
            panel.grid(alpha=0.3)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(3, len(names)), fontsize=9)
    return figure


def _bars(estimates: Sequence[Estimate]) -> tuple[list[float], list[float]]:
    return [one.mean for one in estimates], [one.half_width for one in estimates]


def _trade_off(
    panel: Axes, rewards: Sequence[Estimate], judged: Sequence[Estimate], style: dict[str, Any]
) -> None:
    (x, x_halves), (y, y_halves) = _bars(rewards), _bars(judged)
    panel.errorbar(x, y, xerr=x_halves, yerr=y_halves, capsize=3, linestyle=":", **style)


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
