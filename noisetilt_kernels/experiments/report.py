"""Report of an experiment: the paper's tables with our numbers, as Markdown, JSON and one HTML page."""

import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image, ImageFont

from ..pages.render import environment, write_page
from ..pages.thumbnails import data_uri
from ..runs.comparison import warnings_of as comparison_warnings
from ..runs.comparison_folder import folder_name
from ..runs.contact_sheet import contact_sheet
from ..runs.entry import runs_of
from ..runs.files import write_whole
from ..runs.folder import Results, peak_memory, png, read_results
from ..runs.plots import draw_comparison, figure_png
from ..runs.table import Row, best_of, tabulate
from ..runs.units import format_bytes, format_seconds
from .spec import Experiment, ExperimentComparison, ExperimentMethod

_MOST_SHEETS, _MOST_IMAGES = 20, 8
"""Largest number of contact sheets, one for each prompt, and of images in a row."""


@dataclass(frozen=True)
class Table:
    """Results of a comparison of an experiment, which may be incomplete.

    Attributes:
        spec: the comparison.
        rows: a row for each method of the comparison.
        results: finished particles by row.
        finished, total: number of images that are finished, and of all.
        folder: folder of the comparison.
    """

    spec: ExperimentComparison
    rows: tuple[Row, ...]
    results: tuple[Results, ...]
    finished: int
    total: int
    folder: Path

    @property
    def complete(self) -> bool:
        """True if all images are finished."""
        return self.finished == self.total

    @property
    def names(self) -> list[str]:
        """Name of each row: its label, with the arguments in which rows of one label and NFE differ."""
        names = []
        for method, row in zip(self.spec.methods, self.rows, strict=True):
            alike = [
                other.method.arguments
                for one, other in zip(self.spec.methods, self.rows, strict=True)
                if (one.label, other.nfe) == (method.label, row.nfe)
            ]
            own = ", ".join(
                f"{name} = {value}"
                for name, value in row.method.arguments.items()
                if any(arguments.get(name) != value for arguments in alike)
            )
            names.append(f"{method.label}, {own}" if own else method.label)
        return names

    @property
    def scaled_rows(self) -> list[Row]:
        """The rows with scores in the paper's units."""
        factors = self.spec.scale
        return [
            replace(row, scores={name: one.scaled(factors.get(name, 1)) for name, one in row.scores.items()})
            for row in self.rows
        ]

    @property
    def carried_out(self) -> bool:
        """True if the comparison has come to its end: it has its table, and each run its summary."""
        files = [
            self.folder / "table.md",
            *(self.folder / folder_name(row.method) / "summary.json" for row in self.rows),
        ]
        return self.complete and all(file.exists() for file in files)

    @property
    def header(self) -> list[str]:
        """Titles of the columns."""
        titles = [self.spec.title_of(name) for name in self.spec.score_names]
        return ["Method", "NFE", f"{titles[0]} (target)", *titles[1:]]

    @property
    def cells(self) -> list[list[str]]:
        """Cells of the rows: our numbers, and behind them those of the paper in brackets.

        Names of rows have the number of images if the table is not complete.
        """
        count = self.spec.settings.count_of_round
        return [
            [
                name if self.complete else f"{name} ({row.scores['reward'].count} of {count})",
                _with_paper(str(row.nfe), method, "nfe"),
                *(
                    _with_paper(str(row.scores[score]) if row.scores[score].count else "", method, score)
                    for score in self.spec.score_names
                ),
            ]
            for name, method, row in zip(self.names, self.spec.methods, self.scaled_rows, strict=True)
        ]

    @property
    def costs(self) -> list[list[str]]:
        """Cost of each row: label, sampler, NFE, seconds and hours, and the peak of the memory."""
        lines = []
        for name, method, row in zip(self.names, self.spec.methods, self.rows, strict=True):
            known = not math.isnan(row.seconds)
            count = self.spec.settings.count_of_round
            lines.append(
                [
                    name,
                    method.text,
                    f"{row.nfe:,}",
                    format_seconds(row.seconds) if known else "",
                    format_seconds(row.seconds * count) if known else "",
                    _peak_memory(self.folder / folder_name(row.method)),
                ]
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the table in the form of report.json."""
        return {
            "name": self.spec.name,
            "title": self.spec.title,
            "settings": self.spec.settings.to_json(),
            "finished": self.finished,
            "total": self.total,
            "scale": dict(self.spec.scale),
            "rows": [
                {"label": method.label, **row.to_json(), "paper": dict(method.paper)}
                for method, row in zip(self.spec.methods, self.rows, strict=True)
            ],
        }


_COST_HEADER = ("Method", "Sampler", "NFE per image", "Time per image", "Time of the row", "Peak memory")


def read_tables(experiment: Experiment, out: Path) -> list[Table]:
    """Return the tables of an experiment from the images that are finished, also while it runs.

    Raises:
        RunFolderError: a folder holds a run with other settings.
    """
    return [_read_table(one, out / one.name) for one in experiment.comparisons]


def _read_table(spec: ExperimentComparison, folder: Path) -> Table:
    settings, entries = spec.settings, [row.entry for row in spec.methods]
    runs = runs_of(settings, entries)
    results = {
        method: read_results(folder / folder_name(method), run.to_json()) for method, run in runs.items()
    }
    rows = tabulate(
        results,
        entries,
        settings.count_of_round,
        settings.score_names,
        settings.diversity,
        settings.particles,
    )
    return Table(
        spec,
        tuple(rows),
        tuple(results[entry.method] for entry in entries),
        sum(particle < run.count for method, run in runs.items() for particle in results[method].outcomes),
        sum(run.count for run in runs.values()),
        folder,
    )


REPORT = "report.md"
"""Report of an experiment in its folder."""


def warnings_of(tables: Iterable[Table]) -> list[str]:
    """Return the warnings of the comparisons that are carried out, see `runs.comparison.warnings_of`."""
    return [
        sentence
        for table in tables
        if table.carried_out
        for sentence in comparison_warnings(table.spec.settings, table.rows, table.folder)
    ]


def write_report(experiment: Experiment, tables: list[Table], out: Path) -> None:
    """Write report.md, report.json, report.html and index.html, the plots and the contact sheets.

    Args:
        experiment: the experiment.
        tables: its tables.
        out: folder of the experiment, which exists.
    """
    pictures = {table.spec.name: _draw(table) for table in tables if _has_images(table)}
    for name, files in pictures.items():
        for file, data in files.items():
            path = out / name / file
            path.parent.mkdir(exist_ok=True)
            write_whole(path, data)
    plots = {name: f"{name}/{_PLOT}" for name in pictures}
    write_whole(out / REPORT, markdown(experiment, tables, plots).encode())
    values = {
        "experiment": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "comparisons": [table.to_json() for table in tables],
    }
    write_whole(out / "report.json", json.dumps(values, indent=2, allow_nan=False).encode() + b"\n")
    write_whole(out / "report.html", _html(experiment, tables, pictures).encode())
    write_page(out)


def markdown(experiment: Experiment, tables: Sequence[Table], plots: dict[str, str] | None = None) -> str:
    """Return the report as Markdown.

    Args:
        experiment: the experiment.
        tables: its tables.
        plots: path of the plot of each comparison that has one, by its name.
    """
    parts = [f"# {experiment.title}", experiment.source]
    for table in tables:
        parts.append(f"## {table.spec.title or table.spec.name}")
        parts.append(_description(table))
        parts.append(_markdown_table(table.header, table.cells))
        if plots and table.spec.name in plots:
            parts.append(f"![Reward against cost, and held-out rewards]({plots[table.spec.name]})")
        parts.append(_markdown_table(_COST_HEADER, table.costs))
    parts += [f"- {note}" for note in (*experiment.notes, *warnings_of(tables))]
    return "\n\n".join(filter(None, parts)) + "\n"


def _description(table: Table) -> str:
    settings = table.spec.settings
    images = "one image" if settings.particles == 1 else f"{settings.particles} images"
    prompts = f"{len(settings.prompts)} prompt{'s' if len(settings.prompts) > 1 else ''}"
    text = (
        f"Model: {settings.model}. {prompts}, {images} for each, seed {settings.seed}. Each number has half "
        "of its 95 % confidence interval after ±"
    )
    papers = any(method.paper.keys() - {"nfe"} for method in table.spec.methods)
    text += ", and the paper's number in brackets." if papers else "."
    if not table.complete:
        text += f" Not finished: {table.finished:,} of {table.total:,} images."
    return text


def _markdown_table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    header = list(header)
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def _with_paper(text: str, method: ExperimentMethod, name: str) -> str:
    """Return our number, with the paper's in brackets if it has one."""
    if name not in method.paper or (name == "nfe" and text == str(method.paper[name])):
        return text
    return f"{text} ({method.paper[name]})".strip()


def _peak_memory(folder: Path) -> str:
    """Return the largest memory of a run on the GPU, or "" if it is not known."""
    peak = peak_memory(folder)
    return "" if peak is None else format_bytes(peak)


def _has_images(table: Table) -> bool:
    return any(row.scores["reward"].count for row in table.rows)


_PLOT = "plot.png"


def _draw(table: Table) -> dict[str, bytes]:
    """Return the plot and the contact sheets of a table as PNG files, by path in its folder."""
    spec = table.spec
    shown = [
        (method, row)
        for method, row in zip(spec.methods, table.scaled_rows, strict=True)
        if row.scores["reward"].count
    ]
    figure = draw_comparison(
        [row for _, row in shown],
        [reward.name for reward in spec.settings.held_out],
        spec.title_of("reward"),
        names=[method.label for method, _ in shown],
        titles={name: spec.title_of(name) for name in spec.score_names},
    )
    files = {_PLOT: figure_png(figure)}
    for index in range(min(_MOST_SHEETS, len(spec.settings.prompts))):
        sheet = _sheet(table, index)
        if sheet is not None:
            files[_sheet_file(index)] = png(sheet)
    return files


def _sheet_file(index: int) -> str:
    return f"prompts/{index:04d}.png"


def _sheet(table: Table, index: int) -> Image.Image | None:
    """Return a sheet with the chosen images of a prompt, a row for each method; None without images."""
    settings, factor = table.spec.settings, table.spec.scale.get("reward", 1)
    places = range(index * settings.particles, (index + 1) * settings.particles)[:_MOST_IMAGES]
    titles, images, captions, videos = [], [], [], False
    for name, method, results in zip(table.names, table.spec.methods, table.results, strict=True):
        entry = method.entry
        best = best_of(results.outcomes, entry.best_of, settings.count_of_round)
        chosen = [best[place] for place in places if place in best]
        if chosen:
            titles.append(f"{name}, {entry.nfe} NFE")
            folder = table.folder / folder_name(entry.method) / "images"
            images.append([folder / f"{one.particle:04d}.png" for one in chosen])
            captions.append([f"{factor * one.reward:#.4g}" for one in chosen])
            videos |= any(one.video for one in chosen)
    if not images:
        return None
    # labels of the papers have letters that Pillow's own font lacks
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 13)
    return contact_sheet(images, titles, captions, cell=(480, 64) if videos else (160, 160), font=font)


_TEMPLATE = Path(__file__).with_name("report.html.j2")


def _html(experiment: Experiment, tables: list[Table], pictures: dict[str, dict[str, bytes]]) -> str:
    """Return the report as one HTML page that holds its pictures."""
    template = environment().from_string(_TEMPLATE.read_text(encoding="utf-8"))
    sections = [
        {
            "title": table.spec.title or table.spec.name,
            "description": _description(table),
            "header": table.header,
            "cells": table.cells,
            "costs": table.costs,
            "plot": data_uri(files[_PLOT], "png") if files else None,
            "sheets": [
                (prompt, data_uri(_as_jpeg(files[_sheet_file(index)]), "jpeg"))
                for index, prompt in enumerate(table.spec.settings.prompts)
                if _sheet_file(index) in files
            ],
        }
        for table in tables
        for files in [pictures.get(table.spec.name, {})]
    ]
    notes = [*experiment.notes, *warnings_of(tables)]
    return template.render(experiment=experiment, sections=sections, cost_header=_COST_HEADER, notes=notes)


def _as_jpeg(data: bytes) -> bytes:
    """Return a PNG picture as a JPEG file, which is a fraction of the size."""
    result = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.save(result, format="jpeg", quality=88)
    return result.getvalue()
