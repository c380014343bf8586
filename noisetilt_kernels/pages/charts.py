"""Charts of a page, drawn by Bokeh in the browser."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from bokeh.embed import components
from bokeh.models import (
    CDSView,
    ColumnDataSource,
    CustomJSFilter,
    CustomJSHover,
    HoverTool,
    PlainText,
)
from bokeh.models.renderers import GlyphRenderer
from bokeh.palettes import Category10_10
from bokeh.plotting import figure
from bokeh.resources import Resources

from ..sampling import StepRecord
from .content import Picture, Section, format_score

MARKERS = {
    "circle": "●",
    "square": "■",
    "diamond": "◆",
    "triangle": "▲",
    "inverted_triangle": "▼",
    "star": "★",
    "hex": "⬢",
}
"""Markers of methods, with the characters that stand for them in tables."""


class Style(NamedTuple):
    """Look of a method."""

    color: str
    marker: str
    sign: str
    """Character that looks like the marker."""


def style_of(place: int) -> Style:
    """Return the look of a method by its number in its section. The first 70 methods look different."""
    marker = list(MARKERS)[place % len(MARKERS)]
    return Style(Category10_10[place % len(Category10_10)], marker, MARKERS[marker])


class Chart(NamedTuple):
    """Chart of a page."""

    title: str
    description: str
    html: str


class Point(NamedTuple):
    """Image on the page, as the charts of its section know it."""

    id: str
    """Id of its picture in the page."""
    place: int
    """Number of its run in the section."""
    picture: Picture


_CURVES: Sequence[tuple[str, str, str, Callable[[StepRecord], float | None]]] = (
    ("reward", "Reward", "Reward of the image that each step expects.", lambda one: one.reward),
    (
        "gradient",
        "Gradient norm",
        "Euclidean norm of the reward's gradient at each step.",
        lambda one: one.gradient_norm,
    ),
    (
        "cosine",
        "Cosine",
        "Cosine between the gradient and the noise that the operator made of it. At 1 the noise points "
        "exactly where the gradient points.",
        lambda one: one.cosine,
    ),
)
"""Curves over the steps: column, title, description, and value of a record."""

_TOOLTIP = """<div style="max-width: 16rem; margin: -5px; padding: 8px; font: 13px/1.35 system-ui, sans-serif;
 background: var(--card); color: var(--ink)">
<img src="@id{custom}" alt="" style="display: block; width: 8rem; height: 8rem; object-fit: contain;
 image-rendering: var(--rendering)">
<b>@score</b><div style="overflow-wrap: anywhere">@method</div><div>@prompt</div></div>"""
"""Content of a tooltip, which the styles of the page do not reach. Bokeh escapes the values."""

_PICTURE_OF_PAGE = """
const image = document.querySelector(`#${value} img`)
return image === null ? "data:," : image.src
"""

_SHOWN = """
return [...document.querySelectorAll(`#${section} figure[data-method]`)].map(one => !one.hidden)
"""
"""JavaScript for the rows of a section: those whose picture the filter of the page shows."""


def scripts() -> str:
    """Return the script elements of Bokeh itself, which the page holds."""
    return str(Resources(mode="inline", components=["bokeh"], minified=True).render_js())


def draw(sections: Iterable[tuple[str, Section, Sequence[Point]]]) -> tuple[str, list[list[Chart]]]:
    """Return the charts of sections.

    Args:
        sections: id of the section's element in the page, the section, and its images in the order of the
            page.

    Returns:
        The script element that draws the charts, "" without charts; and the charts of each section.
    """
    plans = [_plan(*one) for one in sections]
    figures = [plot for charts in plans for _, _, plot in charts]
    if not figures:
        return "", [[] for _ in plans]
    script, divisions = components(figures)
    rest = iter(divisions)
    return script, [[Chart(title, text, next(rest)) for title, text, _ in charts] for charts in plans]


def _plan(id: str, section: Section, points: Sequence[Point]) -> list[tuple[str, str, figure]]:
    """Return title, description and figure of each chart of a section."""
    judges = [judge.name for judge in section.settings.held_out]
    source = _source(section, points, judges)
    view = CDSView(filter=CustomJSFilter(args={"section": id}, code=_SHOWN, name=f"shown {id}"))
    charts = []
    for judge in judges:
        if np.isfinite(source.data[f"judge {judge}"]).any():
            plot = _figure("reward", judge)
            dots = plot.scatter(
                x="reward",
                y=f"judge {judge}",
                marker="marker",
                color="color",
                size=9,
                fill_alpha=0.45,
                source=source,
                view=view,
            )
            _add_hover(plot, dots)
            text = f"Each point is an image; the run was not steered by {judge}. Point at one to see it."
            charts.append((f"Reward and {judge}", text, plot))
    for column, title, text, _ in _CURVES:
        if any(len(values) for values in source.data[f"{column} values"]):
            plot = _figure("step", title.lower())
            lines = plot.multi_line(
                xs=f"{column} steps",
                ys=f"{column} values",
                color="color",
                line_alpha=0.55,
                line_width=1.5,
                hover_line_alpha=1,
                hover_line_width=3.5,
                source=source,
                view=view,
            )
            _add_hover(plot, lines)
            charts.append((f"{title} over the steps", text, plot))
    return charts


def _source(section: Section, points: Sequence[Point], judges: Sequence[str]) -> ColumnDataSource:
    """Return a row for each image: its scores, its look and its curves."""
    outcomes = [point.picture.outcome for point in points]
    styles = [style_of(point.place) for point in points]
    data: dict[str, object] = {
        "id": [point.id for point in points],
        "method": [section.runs[point.place].name for point in points],
        "prompt": [point.picture.prompt for point in points],
        "color": [style.color for style in styles],
        "marker": [style.marker for style in styles],
        "reward": np.array([np.nan if one is None else one.reward for one in outcomes]),
        "score": [
            "not finished" if one is None else f"reward {format_score(one.reward)}" for one in outcomes
        ],
    }
    for judge in judges:
        scores = [np.nan if one is None else one.parts[judge] for one in outcomes]
        data[f"judge {judge}"] = np.array(scores)
    for column, _, _, value_of in _CURVES:
        curves = [_curve(point.picture.records, value_of) for point in points]
        data[f"{column} steps"] = [steps for steps, _ in curves]
        data[f"{column} values"] = [values for _, values in curves]
    return ColumnDataSource(data)


def _curve(
    records: Sequence[StepRecord], value_of: Callable[[StepRecord], float | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps that have a value, and the values."""
    values = [(record.step, value) for record in records if (value := value_of(record)) is not None]
    steps = np.array([step for step, _ in values], dtype=np.int32)
    return steps, np.array([value for _, value in values], dtype=np.float32)


def _figure(x: str, y: str) -> figure:
    # the colours of axes and grid are those of the page, by CSS variables
    plot = figure(
        height=300,
        sizing_mode="stretch_width",
        tools="pan,box_zoom,wheel_zoom,reset",
        active_drag=None,  # fingers scroll the page
        toolbar_location="above",
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_alpha=0,
        min_border=8,
    )
    plot.toolbar.logo = None
    plot.toolbar.stylesheets = [".bk-divider { display: none }"]  # bright lines on a dark page
    # a plain string with $$ would be a formula, for which Bokeh loads a library from the network
    plot.xaxis.axis_label, plot.yaxis.axis_label = PlainText(text=x), PlainText(text=y)
    return plot


def _add_hover(plot: figure, drawn: "GlyphRenderer[Any]") -> None:
    """Show the picture of an image at its point or at its curve. The page has each picture once."""
    plot.add_tools(
        HoverTool(
            renderers=[drawn],
            tooltips=_TOOLTIP,
            formatters={"@id": CustomJSHover(code=_PICTURE_OF_PAGE)},
            limit=1,
            visible=False,
        )
    )
