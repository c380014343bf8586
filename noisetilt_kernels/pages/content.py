"""Content of a page, from the folder of a run, a comparison or an experiment."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from ..checks import json_fields
from ..runs.comparison_folder import folder_name, read_comparison
from ..runs.entry import Entry
from ..runs.errors import RunFolderError
from ..runs.folder import Outcome, Planned, Snapshot, peak_memory, read_plan, read_snapshot
from ..runs.lock import has_owner
from ..runs.settings import Settings
from ..runs.statistics import estimate
from ..runs.table import cells, tabulate
from ..runs.units import format_bytes, format_seconds
from ..sampling import StepRecord
from ..sampling.result import best_index
from ..sampling.typicality import COLLAPSED

Kind = Literal["run", "comparison", "experiment"]

_MARKS: Mapping[str, Kind] = {
    "report.json": "experiment",
    "methods.json": "comparison",
    "run.json": "run",
}
"""Kind of folder that has a file of this name; the first one counts."""

MOST_IMAGES = 1000
"""Largest number of images on a page, which has a small picture of each."""


def kind_of(folder: Path) -> Kind | None:
    """Return the kind of a folder, or None if it has no run."""
    return next((kind for name, kind in _MARKS.items() if (folder / name).is_file()), None)


def format_score(value: float) -> str:
    """Return a reward of an image as text."""
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


class Picture(NamedTuple):
    """An image of a run, which may be unfinished."""

    particle: int
    prompt: str
    outcome: Outcome | None
    """None if the image is not finished."""
    records: Sequence[StepRecord]
    """Steps so far."""

    @property
    def faults(self) -> list[str]:
        """Faults of this image in plain words."""
        fallbacks = [record.fallback for record in self.records if record.fallback]
        faults = [f"{_count(n, 'step')} unguided: {why}" for why, n in Counter(fallbacks).items()]
        if self.collapsed:
            faults.append(f"probably destroyed: noise peak {self.noise_peak:.1f}")
        if self.outcome is not None and self.outcome.reward != self.outcome.reward:
            faults.append("reward is not finite")
        return faults

    @property
    def noise_peak(self) -> float:
        """Peak of the noise, 0 if it is not known."""
        return max((record.noise_peak or 0 for record in self.records), default=0)

    @property
    def collapsed(self) -> bool:
        """True if the noise has a peak that images do not survive, see `sampling.typicality`."""
        return self.noise_peak > COLLAPSED


@dataclass(frozen=True)
class Run:
    """A run of a page.

    Attributes:
        name: name of its method on the page.
        folder: its folder.
        settings: its settings, of which some images may be missing.
        snapshot: what the folder holds.
        planned: what it was expected to take.
        locked: True if a process holds the lock of the folder. It still does when it writes the page of a run
            that has come to its end, and a comparison locks the folders of all methods until its end.
        ended: True if the run has written its summary.
    """

    name: str
    folder: Path
    settings: Settings
    snapshot: Snapshot
    planned: Planned
    locked: bool
    ended: bool

    @staticmethod
    def read(folder: Path, name: str | None = None) -> "Run":
        """Read the folder of a run, also while the run goes on.

        Raises:
            RunFolderError: a file is wrong, or is of another version of the package.
            OSError: a file cannot be read.
        """
        snapshot = read_snapshot(folder)
        try:
            settings = Settings.from_json(snapshot.settings)
        except (KeyError, TypeError, ValueError) as error:
            raise RunFolderError(
                f"{folder / 'run.json'} has settings that this version of the package does not know ({error})"
            ) from None
        return Run(
            name or settings.method.name,
            folder,
            settings,
            snapshot,
            read_plan(folder),
            has_owner(folder),
            (folder / "summary.json").exists(),
        )

    @cached_property
    def pictures(self) -> list[Picture]:
        """Images that are finished or begun, in order."""
        outcomes, records = self.snapshot.results.outcomes, self.snapshot.records
        return [
            Picture(
                particle,
                self.settings.prompts[self.prompt_of(particle)],
                outcomes.get(particle),
                records.get(particle, ()),
            )
            for particle in sorted(outcomes.keys() | records.keys())
            if particle in outcomes or particle < self.settings.count
        ]

    def prompt_of(self, particle: int) -> int:
        """Return the number of a particle's prompt."""
        return particle % self.settings.count_of_round // self.settings.particles

    @cached_property
    def best(self) -> set[int]:
        """Best finished particle of each prompt that has at least two."""
        groups: dict[int, list[Outcome]] = {}
        for particle, outcome in sorted(self.snapshot.results.outcomes.items()):
            groups.setdefault(self.prompt_of(particle), []).append(outcome)
        return {
            group[best_index([one.reward for one in group])].particle
            for group in groups.values()
            if len(group) > 1
        }

    @property
    def finished(self) -> int:
        """Number of finished images."""
        return len(self.snapshot.results.outcomes)

    @property
    def complete(self) -> bool:
        """True if the run has come to its end. A run that is continued with more rounds has not."""
        return self.ended and self.finished >= self.settings.count

    @property
    def running(self) -> bool:
        """True if a process makes images of the run, or will make them."""
        return self.locked and not self.complete

    @property
    def state(self) -> str:
        """Progress in plain words."""
        if self.complete:
            return f"{_count(self.finished, self.kind)}, finished"
        if not self.pictures:
            progress = "not begun"
        else:
            progress = "running" if self.running else "stopped before its end"
        return f"{self.finished:,} of {self.settings.count:,} {self.kind}s, {progress}"

    @property
    def has_videos(self) -> bool:
        """True if the run makes videos."""
        return any(one.video for one in self.snapshot.results.outcomes.values())

    @property
    def kind(self) -> str:
        """Kind of its results: "image" or "video"."""
        return "video" if self.has_videos else "image"

    @property
    def seconds(self) -> float:
        """Mean time of the steps of an image, NaN if it is not known."""
        return estimate(filter(None, self.snapshot.results.seconds.values())).mean

    @property
    def warnings(self) -> list[str]:
        """Faults of the run in plain words."""
        name, total = self.name, len(self.pictures)
        found = []
        if not self.running and not self.complete:
            found.append(
                f"{name}: stopped after {self.finished:,} of {self.settings.count:,} {self.kind}s; the same "
                "command with --resume continues it."
            )
        reasons = Counter(record.fallback for one in self.pictures for record in one.records)
        reasons.pop(None, None)
        for reason, steps in reasons.items():
            those = sum(any(record.fallback == reason for record in one.records) for one in self.pictures)
            found.append(
                f"{name}: {_count(steps, 'step')} of {_count(those, self.kind)} left unguided: {reason}."
            )
        if collapsed := [one for one in self.pictures if one.collapsed]:
            highest = max(one.noise_peak for one in collapsed)
            found.append(
                f"{name}: {len(collapsed):,} of {_count(total, self.kind)} probably destroyed by too strong "
                f"guidance (noise peak up to {highest:.1f}, that of Gaussian noise is about 1, the limit is "
                f"{COLLAPSED:g})."
            )
        outcomes = self.snapshot.results.outcomes.values()
        if lost := sum(one.reward != one.reward for one in outcomes):
            found.append(f"{name}: the reward of {_count(lost, self.kind)} is not finite.")
        return found


class Table(NamedTuple):
    """Table of a page. The first cell of a line names a method or a score."""

    header: Sequence[str]
    lines: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """Runs that have prompts, seeds and rewards in common.

    Attributes:
        title: title of the section.
        folder: folder of the comparison, or of the only run.
        runs: the runs.
        results: table of the scores.
        of_line: number of the run that each line of the table belongs to.
        missing: sentence on runs that cannot be shown.
    """

    title: str
    folder: Path
    runs: Sequence[Run]
    results: Table
    of_line: Sequence[int]
    missing: Sequence[str] = ()

    @property
    def settings(self) -> Settings:
        """Settings that the runs have in common, but for the method."""
        return self.runs[0].settings

    @property
    def finished(self) -> int:
        """Number of finished images of all runs."""
        return sum(run.finished for run in self.runs)

    @property
    def description(self) -> str:
        """Settings that the runs have in common, and their progress, in plain words."""
        settings = self.settings
        steering = " ".join(f"{one.weight:+g} {one.name}" for one in settings.rewards)
        judges = (
            f", judged by {', '.join(one.name for one in settings.held_out)}" if settings.held_out else ""
        )
        total = sum(run.settings.count for run in self.runs)
        return (
            f"Model {settings.model}, steered toward {steering}{judges}. "
            f"{_count(len(settings.prompts), 'prompt')}, {settings.particles} images for each, seed "
            f"{settings.seed}. {self.finished:,} of {_count(total, self.runs[0].kind)} finished."
        )

    @property
    def costs(self) -> Table:
        """Table of time, memory and NFE of the runs, beside the plan."""
        of_comparison = kind_of(self.runs[0].folder.parent) == "comparison"
        header = (
            "Method",
            "State",
            "NFE per image",
            "NFE of all",
            "Time per image",
            "Time planned",
            "Peak memory",
            "Memory planned for all methods" if of_comparison else "Memory planned",
        )
        lines = []
        for run in self.runs:
            peak, planned = peak_memory(run.folder), run.planned
            on_gpu = str(run.snapshot.compute.get("device")).startswith("cuda")
            no_peak = "not known yet" if on_gpu else "not measured: no GPU"
            seconds = "" if run.seconds != run.seconds else format_seconds(run.seconds)
            lines.append(
                [
                    str(run.settings.method),  # a name may have "best of 4", and the NFE is that of one image
                    run.state,
                    f"{run.settings.method.nfe:,}",
                    f"{run.settings.nfe:,}",
                    seconds or "not known",
                    "not measured" if planned.seconds is None else format_seconds(planned.seconds),
                    no_peak if peak is None else format_bytes(peak),
                    "not known" if planned.memory is None else format_bytes(planned.memory),
                ]
            )
        return Table(header, lines)

    @property
    def warnings(self) -> list[str]:
        """Faults of the runs in plain words."""
        return [*self.missing, *(sentence for run in self.runs for sentence in run.warnings)]


@dataclass(frozen=True)
class Page:
    """Content of a page.

    Attributes:
        kind: kind of the folder.
        title: title of the page.
        source: paper of an experiment, or "".
        sections: its sections.
    """

    kind: Kind
    title: str
    source: str
    sections: Sequence[Section]

    @property
    def running(self) -> bool:
        """True if a run of the page goes on."""
        return any(run.running for section in self.sections for run in section.runs)

    def shown(self) -> list[list[list[Picture]]]:
        """Return the images to show, of each run of each section: at most `MOST_IMAGES`.

        All runs have the same share: first the first image of every prompt, then the second one.
        """
        groups = [
            (rank, index, place, number, picture)
            for number, section in enumerate(self.sections)
            for place, run in enumerate(section.runs)
            for rank, index, picture in _ranked(run)
        ]
        groups.sort(key=lambda group: group[:4])
        chosen: list[list[list[Picture]]] = [[[] for _ in section.runs] for section in self.sections]
        for _, _, place, number, picture in groups[:MOST_IMAGES]:
            chosen[number][place].append(picture)
        for pictures in (one for of_section in chosen for one in of_section):
            pictures.sort(key=lambda picture: picture.particle)
        return chosen


def _ranked(run: Run) -> Iterable[tuple[int, int, Picture]]:
    """Yield the images of a run, each with its number among those of its prompt, and the prompt's number."""
    count, particles = run.settings.count_of_round, run.settings.particles
    for picture in run.pictures:
        rounds, place = divmod(picture.particle, count)
        yield rounds * particles + place % particles, run.prompt_of(picture.particle), picture


def read_page(folder: Path) -> Page:
    """Return the content of the page of a folder, also while its runs go on.

    Raises:
        RunFolderError: the folder has no run, or a file is wrong.
        OSError: a file cannot be read.
    """
    kind = kind_of(folder)
    if kind is None:
        raise RunFolderError(f"{folder} has no run.json, methods.json or report.json, so it is no run")
    if kind == "experiment":
        return _experiment(folder)
    name = folder.resolve().name
    section = _of_run(folder) if kind == "run" else _of_comparison(folder, name)
    return Page(kind, name, "", [section])


def _of_run(folder: Path) -> Section:
    run = Run.read(folder)
    settings, method = run.settings, run.settings.method
    # the images of a prompt are not in one piece if there are several rounds
    diversity = settings.diversity if settings.rounds == 1 else ()
    rows = tabulate(
        {method: run.snapshot.results},
        [Entry(method)],
        settings.count,
        settings.score_names,
        diversity,
        settings.particles,
    )
    header, line = cells(rows)
    known = 2 + len(rows[0].scores)  # after these come differences to other methods
    return Section(run.name, folder, [run], Table(header[:known], [[run.name, *line[1:known]]]), [0])


def _of_comparison(folder: Path, title: str, labels: Mapping[tuple[str, int], str] | None = None) -> Section:
    """Return the section of a comparison.

    Args:
        folder: its folder.
        title: title of the section.
        labels: name of a row on the page by its resolved method and its number of images to choose from.

    Raises:
        RunFolderError: a file is wrong, or no run has begun.
    """
    comparison = read_comparison(folder)
    if comparison is None:
        raise RunFolderError(f"{folder} has no methods.json, so it is no comparison")
    try:
        entries = comparison.entries
    except ValueError as error:
        raise RunFolderError(f"{folder / 'methods.json'} names an unknown method ({error})") from None
    methods = dict.fromkeys(entry.method for entry in entries)
    names = {
        entry: (labels or {}).get((str(entry.method), entry.best_of), "")
        or (f"{entry.method}, best of {entry.best_of}" if entry.best_of > 1 else str(entry.method))
        for entry in entries
    }
    fewest = {entry.method: names[entry] for entry in sorted(entries, key=lambda entry: -entry.best_of)}
    runs, missing = {}, []
    for method in methods:
        path = folder / folder_name(method)
        if (path / "run.json").exists():
            runs[method] = Run.read(path, fewest[method])
        else:
            missing.append(f"{fewest[method]}: not begun.")
    if not runs:
        raise RunFolderError(f"{folder} has no run that has begun")
    settings = next(iter(runs.values())).settings
    rows = tabulate(
        {method: run.snapshot.results for method, run in runs.items()},
        [entry for entry in entries if entry.method in runs],
        settings.count_of_round,
        settings.score_names,
        settings.diversity,
        settings.particles,
    )
    header, *lines = cells(rows)
    named = [names[Entry(row.method, row.best_of)] for row in rows]
    table = Table(header, [[name, *line[1:]] for name, line in zip(named, lines, strict=True)])
    places = [list(runs).index(row.method) for row in rows]
    return Section(title, folder, list(runs.values()), table, places, missing)


def _experiment(folder: Path) -> Page:
    """Return the page of an experiment, whose report names its comparisons and their rows."""
    file = folder / "report.json"
    try:
        report = json_fields(file.read_bytes(), {"title": (str,), "source": (str,), "comparisons": (list,)})
        sections = []
        for one in report["comparisons"]:
            own = json_fields(json.dumps(one), {"name": (str,), "rows": (list,)})
            labels = {
                (row["method"], row["best_of"]): f"{row['label']}: {row['method']}" for row in own["rows"]
            }
            path = folder / own["name"]
            if path.parent != folder or path.name == ".." or not (path / "methods.json").exists():
                continue
            sections.append(_of_comparison(path, str(one.get("title") or own["name"]), labels))
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{file} was not written by an experiment of this package ({error})") from None
    if not sections:
        raise RunFolderError(f"{folder} has no comparison that has begun")
    return Page("experiment", report["title"], report["source"], sections)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
