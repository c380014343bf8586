"""Pages as HTML, and index.html in the folder of a run."""

import functools
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from ..runs.files import write_whole
from .content import Picture, Run, Section, format_score, read_page
from .packages import HOW_TO_INSTALL, missing_package
from .thumbnails import thumbnail

if TYPE_CHECKING:
    import jinja2

_LOG = logging.getLogger(__name__)

PAGE = "index.html"
"""Name of the page in a folder."""


def write_page(folder: Path) -> None:
    """Write index.html to the folder of a run, a comparison or an experiment.

    A run must not fail because of its page: an error is logged, and so is, once, a package that is not
    installed.
    """
    missing = missing_package()
    if missing is not None:
        _say_missing(missing)
        return
    try:
        write_whole(folder / PAGE, render(folder).encode())
    except Exception as error:
        _LOG.warning("%s was not written: %s: %s", folder / PAGE, type(error).__name__, error)


@functools.cache
def _say_missing(name: str) -> None:
    _LOG.warning("%s is not written, because it needs %s: %s", PAGE, name, HOW_TO_INSTALL)


def render(folder: Path, stamp: str | None = None, root: Path | None = None) -> str:
    """Return the page of a folder as HTML, also while its runs go on.

    Args:
        folder: folder of a run, a comparison or an experiment.
        stamp: state of the folder's files, for a page that is served: it asks the server for a newer one.
        root: folder that is served: images that a symbolic link puts outside of it are not shown.

    Raises:
        RunFolderError: the folder has no run, or a file is wrong.
        OSError: a file cannot be read.
    """
    from . import charts

    page = read_page(folder)
    shown = page.shown()
    sections = [
        _SectionOfPage(f"section-{number}", number, section, pictures, folder, root)
        for number, (section, pictures) in enumerate(zip(page.sections, shown, strict=True))
    ]
    runs = [run for section in page.sections for run in section.runs]
    prompts = _numbered(prompt for run in runs for prompt in run.settings.prompts)
    shown_prompts = {card.prompt for one in sections for card in one.cards}
    script, drawn = charts.draw((one.id, one.section, one.points) for one in sections)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            page=page,
            sections=[(one, of_one) for one, of_one in zip(sections, drawn, strict=True)],
            bokeh=charts.scripts() if script else "",
            script=script,
            stamp=stamp,
            home=root not in (None, folder),
            count=sum(one.count for one in sections),
            total=sum(len(run.pictures) for run in runs),
            methods=_numbered(run.name for run in runs),
            prompts={name: number for name, number in prompts.items() if name in shown_prompts},
            titles=[(one.section.title, one.number) for one in sections],
            warnings=[sentence for section in page.sections for sentence in section.warnings],
        )
    )


@functools.cache
def environment() -> "jinja2.Environment":
    """Return the environment of the templates, which escapes every text."""
    import jinja2

    return jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


class Card(NamedTuple):
    """Image of a page with its caption."""

    id: str
    picture: Picture
    run: Run
    number: int
    """Number of the prompt in its section."""
    place: int
    """Number of the run in its section."""
    thumbnail: str | None
    """Data URI; None for an image that is not finished, or cannot be read."""
    file: str
    """Address of the image or video from the page."""
    best: bool
    """True for the best image of its prompt and method."""

    @property
    def prompt(self) -> str:
        """Prompt of the image."""
        return self.picture.prompt

    @property
    def video(self) -> bool:
        """True for a video."""
        return self.picture.outcome is not None and self.picture.outcome.video

    @property
    def scores(self) -> Mapping[str, str]:
        """Scores by name as text."""
        one = self.picture.outcome
        if one is None:
            return {}
        values = {"reward": one.reward, **{name: one.parts[name] for name in self.run.settings.score_names}}
        return {name: format_score(value) for name, value in values.items()}

    @property
    def description(self) -> str:
        """Text in place of the image."""
        scores = ", ".join(f"{name} {value}" for name, value in self.scores.items())
        kind = "Video" if self.video else "Image"
        return f"{kind} {self.picture.particle} of {self.run.name} for “{self.prompt}”; {scores}"


class Group(NamedTuple):
    """Images of a prompt and a method."""

    run: Run
    style: Any
    cards: Sequence[Card]


class _SectionOfPage:
    """Section with the pictures that the page shows."""

    def __init__(
        self,
        id: str,
        number: int,
        section: Section,
        shown: Sequence[Sequence[Picture]],
        folder: Path,
        root: Path | None,
    ) -> None:
        self.id = id
        self.number = number
        self.section = section
        self._folder = folder
        self._root = root
        groups: dict[tuple[int, int], list[Picture]] = {}
        for place, pictures in enumerate(shown):
            for picture in pictures:
                prompt = section.runs[place].prompt_of(picture.particle)
                groups.setdefault((prompt, place), []).append(picture)
        self.cards = [
            card
            for (prompt, place), pictures in sorted(groups.items())
            for card in self._cards(prompt, place, pictures)
        ]

    def _cards(self, prompt: int, place: int, pictures: Sequence[Picture]) -> Iterator[Card]:
        """Yield the cards of the images of a prompt and a method."""
        run = self.section.runs[place]
        address = self.address(run.folder)
        for picture in pictures:
            video = picture.outcome is not None and picture.outcome.video
            name = f"{picture.particle:04d}"
            image = run.folder / "images" / f"{name}.png"
            yield Card(
                f"image-{self.number}-{place}-{picture.particle}",
                picture,
                run,
                prompt,
                place,
                None if picture.outcome is None or self._is_outside(image) else thumbnail(image, video),
                f"{address}videos/{name}.mp4" if video else f"{address}images/{name}.png",
                picture.particle in run.best,
            )

    def _is_outside(self, file: Path) -> bool:
        return self._root is not None and not file.resolve().is_relative_to(self._root)

    def address(self, folder: Path) -> str:
        """Return the address of a folder from the page, with a slash at its end; "" for the page's own."""
        path = Path(os.path.relpath(folder, self._folder)).as_posix()
        return "" if path == "." else f"{quote(path)}/"

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.cards)

    @property
    def points(self) -> list[Any]:
        """Images in the form of the charts, in the order of the page."""
        from .charts import Point

        return [Point(card.id, card.place, card.picture) for card in self.cards]

    @property
    def prompts(self) -> list[tuple[str, list[Group]]]:
        """Prompts, each with its images by method."""
        from .charts import style_of

        prompts: dict[int, dict[int, list[Card]]] = {}
        for card in self.cards:
            prompts.setdefault(card.number, {}).setdefault(card.place, []).append(card)
        return [
            (
                self.section.settings.prompts[number],
                [Group(self.section.runs[place], style_of(place), cards) for place, cards in methods.items()],
            )
            for number, methods in prompts.items()
        ]

    @property
    def lines(self) -> list[tuple[Any, str, Sequence[str]]]:
        """Lines of the table of results: look of the method, address of its page, cells."""
        from .charts import style_of

        table = self.section.results.lines
        return [
            (style_of(place), self.address(self.section.runs[place].folder), line)
            for place, line in zip(self.section.of_line, table, strict=True)
        ]

    @property
    def rendering(self) -> str:
        """How the browser enlarges the small pictures: the pixels of tiny images stay sharp."""
        small = any(card.thumbnail and card.thumbnail.startswith("data:image/png") for card in self.cards)
        return "pixelated" if small else "auto"

    @property
    def facts(self) -> dict[str, str]:
        """Settings of the runs, and what they were made with, as text by name."""
        run = self.section.runs[0]
        settings = run.snapshot.settings
        made_with = json.loads((run.folder / "run.json").read_bytes())["made_with"]
        values: dict[str, Any] = {
            "model": settings["model"],
            "reward": " ".join(f"{weight:+g} {name}" for name, weight in settings["rewards"].items()),
            "held out": settings["held_out"],
            **{name: value for name, value in settings.items() if name not in _OWN_PLACE},
            **run.snapshot.compute,
            "started": made_with.get("started"),
            "platform": made_with.get("platform"),
            **made_with.get("versions", {}),
        }
        if len(self.section.runs) > 1:
            values.pop("rounds", None)  # each method has its own
        return {name.replace("_", " "): _text(value) for name, value in values.items() if _text(value)}


_OWN_PLACE = {"model", "prompts", "method", "rewards", "held_out", "diversity"}
"""Settings that are shown elsewhere on the page."""


def _text(value: Any) -> str:
    """Return a JSON value as text, "" for one that says nothing."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _numbered(names: Iterator[str]) -> dict[str, int]:
    """Return the number of each different name. Names of a run that goes on keep their numbers."""
    return {name: number for number, name in enumerate(dict.fromkeys(names))}
