"""The folder of a run: images, latents, the record of every step, and everything needed to repeat it.

    run.json             the settings and what they ran on
    images/0000.png      of particle 0; of a video some frames
    videos/0000.mp4      where the model makes videos
    latents/0000.safetensors
    results.jsonl        a line for every finished particle
    records.jsonl        a line for every step of every particle
    contact-sheet.png    at the end, with
    summary.json

A particle's line in results.jsonl is written last, so that whatever stops a run, what has a line is whole. Where
several processes make a run, all but the first write lines into files of their own, results-1.jsonl and so on, which
`gather` brings together.
"""

import io
import json
import math
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save
from torch import Tensor

from ..sampling.methods import Method
from ..versions import versions
from .errors import RunFolderError
from .files import is_temporary, write_whole
from .videos import film_strip, mp4


@dataclass(frozen=True)
class Outcome:
    """A finished particle.

    Attributes:
        particle: its number.
        prompt: its own.
        reward: what it was steered by, NaN where that was not finite.
        parts: each reward by name, the held-out ones as well, unweighted.
        video: whether it is one, of which there is an MP4 as well; `RunFolder.keep` finds out.
    """

    particle: int
    prompt: str
    reward: float
    parts: dict[str, float]
    video: bool = False

    def to_json(self) -> str:
        """One line of strict JSON, without the newline; NaN and infinity become null."""
        values = asdict(self)
        values["reward"] = _strict(self.reward)
        values["parts"] = {name: _strict(value) for name, value in self.parts.items()}
        return json.dumps(values, allow_nan=False)

    @staticmethod
    def from_json(line: str) -> "Outcome":
        """Inverse of `to_json`."""
        values = json.loads(line)
        parts = {name: _number(value) for name, value in values["parts"].items()}
        return Outcome(
            values["particle"], values["prompt"], _number(values["reward"]), parts, values["video"]
        )


class RunFolder:
    """A run's files.

    Args:
        path: the folder; it is made if it does not exist.
        settings: of the run, as JSON has them.
        resume: go on with what is in the folder, which must be a run of the same settings.
        machine: how it is computed, for the record.
        worker: which of the processes of a run this is; those after 0 come to a folder that 0 has made.

    Raises:
        RunFolderError: there are finished particles in it already, or other files, or those of another run.
        OSError: it cannot be written to.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        machine: Mapping[str, Any] | None = None,
        worker: int = 0,
    ) -> None:
        self.path = path
        self.settings = json.loads(
            json.dumps(settings)
        )  # tuples become lists, as they will be when read again
        self._worker = worker
        if worker:
            self.read()
        else:
            self._open(resume, machine or {})

    def _open(self, resume: bool, machine: Mapping[str, Any]) -> None:
        """Make the folder, or find that it is this run's, and take what is not finished out of it."""
        path = self.path
        run_file = path / "run.json"
        if run_file.exists():
            finished = self.count()
            before = _settings_in(run_file)
            if resume:
                self._check_same(before)
            elif finished:
                raise RunFolderError(
                    f"{path} holds a run with {finished} images already; --resume goes on with it, "
                    "or name another folder"
                )
        elif path.exists() and (not path.is_dir() or not all(map(is_temporary, path.iterdir()))):
            raise RunFolderError(f"{path} is not empty and not the folder of a run; name another one")
        path.mkdir(parents=True, exist_ok=True)
        if not (resume and run_file.exists()):  # first of all: a folder that has it is a run's
            write_whole(
                run_file,
                _pretty({"settings": self.settings, "made_with": _made_with(), "machine": dict(machine)}),
            )
        for folder in ("images", "latents"):
            (path / folder).mkdir(exist_ok=True)
        self.gather()

    def gather(self) -> None:
        """Bring the lines of all processes together, without those that a stopped run left of unfinished particles.

        What is finished is known then.
        """
        outcomes: dict[int, Outcome] = {}
        for file in self._files("results"):
            for one in _read_lines(file, Outcome.from_json, "a finished image"):
                if self._is_there(one):
                    outcomes[one.particle] = one
        records: dict[tuple[int, int], str] = {}
        for file in self._files("records"):
            for record in _read_lines(file, json.loads, "a step"):
                if record["particle"] in outcomes:
                    records[record["particle"], record["step"]] = json.dumps(record)
        _rewrite(self.path / "results.jsonl", [outcomes[particle].to_json() for particle in sorted(outcomes)])
        _rewrite(self.path / "records.jsonl", records.values())
        for file in (*self._files("results")[1:], *self._files("records")[1:]):
            file.unlink()
        self.outcomes = outcomes

    def read(self) -> None:
        """Find out what is finished."""
        lines = _read_lines(self.path / "results.jsonl", Outcome.from_json, "a finished image")
        self.outcomes = {one.particle: one for one in lines if self._is_there(one)}

    def count(self) -> int:
        """Lines of finished particles, of all processes."""
        return sum(len(_whole_lines(file)) for file in self._files("results"))

    def _files(self, name: str) -> list[Path]:
        """Of lines of this name: the one of the whole run first, whether it is there or not."""
        return [self.path / f"{name}.jsonl", *sorted(self.path.glob(f"{name}-*.jsonl"))]

    @property
    def _suffix(self) -> str:
        return f"-{self._worker}" if self._worker else ""

    @property
    def results_file(self) -> Path:
        """A line for every finished particle of this process."""
        return self.path / f"results{self._suffix}.jsonl"

    @property
    def records_file(self) -> Path:
        """A line for every step of every particle of this process."""
        return self.path / f"records{self._suffix}.jsonl"

    def image_file(self, particle: int) -> Path:
        """PNG."""
        return self.path / "images" / f"{particle:04d}.png"

    def latent_file(self, particle: int) -> Path:
        """The tensor "latent", float32."""
        return self.path / "latents" / f"{particle:04d}.safetensors"

    def video_file(self, particle: int) -> Path:
        """MP4."""
        return self.path / "videos" / f"{particle:04d}.mp4"

    @property
    def has_videos(self) -> bool:
        """Whether the run is one of videos."""
        return any(one.video for one in self.outcomes.values())

    def _is_there(self, one: Outcome) -> bool:
        files = [self.image_file(one.particle), self.latent_file(one.particle)]
        if one.video:
            files.append(self.video_file(one.particle))
        return all(file.is_file() for file in files)

    def missing(self, particles: int) -> list[range]:
        """Those of particles 0, 1, ... that are not finished yet, as ranges."""
        ranges: list[range] = []
        for particle in range(particles):
            if particle in self.outcomes:
                continue
            if ranges and ranges[-1].stop == particle:
                ranges[-1] = range(ranges[-1].start, particle + 1)
            else:
                ranges.append(range(particle, particle + 1))
        return ranges

    def keep(self, one: Outcome, latent: Tensor, image: Tensor, fps: int = 16) -> None:
        """Write a finished particle.

        latent: float32 (*shape). image: (3, H, W) with values in [0, 1], or a video (3, F, H, W) of so many fps.

        Raises:
            OSError: a file cannot be written.
        """
        one = replace(one, video=image.ndim == 4)
        write_whole(self.latent_file(one.particle), save({"latent": latent.contiguous()}))
        if one.video:
            self.video_file(one.particle).parent.mkdir(exist_ok=True)
            write_whole(self.video_file(one.particle), mp4(image, fps))
        picture = film_strip(image) if one.video else to_image(image)
        write_whole(self.image_file(one.particle), png(picture))
        with self.results_file.open(
            "ab"
        ) as file:  # buffered, as a raw write may be cut short and say nothing
            file.write(one.to_json().encode() + b"\n")
        self.outcomes[one.particle] = one

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """summary.json"""
        write_whole(self.path / "summary.json", _pretty(summary))

    def _check_same(self, before: Mapping[str, Any]) -> None:
        names = sorted((before.keys() | self.settings.keys()) - _FREE)
        other = [name for name in names if before.get(name) != self.settings.get(name)]
        if other:
            name = other[0]
            raise RunFolderError(
                f"{self.path} holds a run with another {name}: {_told(before.get(name))}, not "
                f"{_told(self.settings.get(name))}; "
                "--resume needs the settings of run.json"
            )


_FREE = {"non_finite"}
"""Settings that no finished particle depends on, so that a run may go on with others."""


def _settings_in(run_file: Path) -> dict[str, Any]:
    try:
        written: dict[str, Any] = json.loads(run_file.read_text())
        return dict(written["settings"])
    except (ValueError, KeyError, TypeError):
        raise RunFolderError(f"{run_file} was not written by a run; name another folder") from None


def to_image(image: Tensor) -> Image.Image:
    """A picture of (3, H, W) with values in [0, 1]; NaN is black."""
    values = (image.detach().float().cpu().nan_to_num().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(values.permute(1, 2, 0).numpy())


def png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    data = io.BytesIO()
    image.save(data, format="png")
    return data.getvalue()


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file of JSON lines but for a last one that was cut off; none if there is no file."""
    if not path.exists():
        return []
    *lines, _rest = path.read_text().split("\n")
    return lines


def _read_lines(path: Path, read: Callable[[str], Any], what: str) -> list[Any]:
    """The whole lines of a file of JSON lines.

    Raises:
        RunFolderError: one is not `what` it should be of.
    """
    try:
        return list(map(read, _whole_lines(path)))
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} has a line that is not of {what} ({error}); take it out") from None


def _rewrite(path: Path, lines: Iterable[str]) -> None:
    lines = list(lines)
    if lines or path.exists():
        write_whole(path, "".join(f"{line}\n" for line in lines).encode())


def _told(setting: Any) -> str:
    """A setting of run.json for people; a method as `parse_method` reads it."""
    if isinstance(setting, dict) and setting.keys() == {"name", "arguments"}:
        return repr(str(Method(setting["name"], setting["arguments"])))
    return repr(setting)


def _strict(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _pretty(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, allow_nan=False).encode() + b"\n"


def _made_with() -> dict[str, Any]:
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
