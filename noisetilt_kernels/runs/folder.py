"""Folder of a run: images, latents, the record of every step, and everything needed to repeat the run.

    run.json                  settings, versions and compute options
    images/0000.png           image of particle 0; for a video some of its frames
    videos/0000.mp4           only if the model makes videos
    latents/0000.safetensors
    results.jsonl             a line for every finished particle
    records.jsonl             a line for every step of every particle
    contact-sheet.png         written at the end
    summary.json              written at the end

A particle's line in results.jsonl is written after its other files, so a particle with a line is complete
even if the run is killed. If several processes make a run, process 1 writes lines to results-1.jsonl and
records-1.jsonl, and so on; `RunFolder.merge_lines` merges them.
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
        particle: number of the particle.
        prompt: prompt of the particle.
        reward: the steering reward, NaN if it is not finite.
        parts: unweighted rewards by name, with the held-out ones.
        video: True for a video, which also has an MP4 file; set by `RunFolder.save_particle`.
    """

    particle: int
    prompt: str
    reward: float
    parts: dict[str, float]
    video: bool = False

    def to_json(self) -> str:
        """Return one line of strict JSON without the newline; NaN and infinity become null."""
        values = asdict(self)
        values["reward"] = _finite_or_none(self.reward)
        values["parts"] = {name: _finite_or_none(value) for name, value in self.parts.items()}
        return json.dumps(values, allow_nan=False)

    @staticmethod
    def from_json(line: str) -> "Outcome":
        """Return the outcome of a line from `to_json`."""
        values = json.loads(line)
        parts = {name: _number_or_nan(value) for name, value in values["parts"].items()}
        return Outcome(
            values["particle"], values["prompt"], _number_or_nan(values["reward"]), parts, values["video"]
        )


class RunFolder:
    """Files of a run.

    Args:
        path: the folder; created if it does not exist.
        settings: settings of the run in JSON form.
        resume: continue the run in the folder, which must have the same settings.
        compute: compute options in JSON form, to be written to run.json.
        worker: number of this process; process 0 creates the folder before the others open it.

    Raises:
        RunFolderError: the folder has finished particles and `resume` is False, or it has other files, or a
            run with other settings.
        OSError: the folder cannot be written to.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        compute: Mapping[str, Any] | None = None,
        worker: int = 0,
    ) -> None:
        self.path = path
        # tuples become lists, the same as in settings that are read from run.json
        self.settings = json.loads(json.dumps(settings))
        self._worker = worker
        if worker:
            self.read_outcomes()
        else:
            self._open(resume, compute or {})

    def _open(self, resume: bool, compute: Mapping[str, Any]) -> None:
        """Create the folder, or check that it belongs to this run; drop the lines of unfinished particles."""
        path = self.path
        run_file = path / "run.json"
        if run_file.exists():
            finished = self.count_finished()
            before, _ = read_run(run_file)
            if resume:
                self._check_same_settings(before)
            elif finished:
                raise RunFolderError(
                    f"{path} already holds a run with finished images ({finished}); "
                    "choose another folder, or continue it with --resume"
                )
        elif path.exists() and (not path.is_dir() or not all(map(is_temporary, path.iterdir()))):
            raise RunFolderError(f"{path} is not empty and not the folder of a run; choose another folder")
        path.mkdir(parents=True, exist_ok=True)
        if not (resume and run_file.exists()):  # before all other files: it marks the folder as a run
            write_whole(
                run_file,
                _pretty({"settings": self.settings, "made_with": _made_with(), "compute": dict(compute)}),
            )
        for folder in ("images", "latents"):
            (path / folder).mkdir(exist_ok=True)
        self.merge_lines()

    def merge_lines(self) -> None:
        """Merge the lines of all processes, drop lines of unfinished particles, and set `outcomes`."""
        outcomes: dict[int, Outcome] = {}
        for file in self._line_files("results"):
            for one in _read_lines(file, Outcome.from_json, "a finished image"):
                if self._files_exist(one):
                    outcomes[one.particle] = one
        records: dict[tuple[int, int], str] = {}
        for file in self._line_files("records"):
            for record in _read_lines(file, json.loads, "a step"):
                if record["particle"] in outcomes:
                    records[record["particle"], record["step"]] = json.dumps(record)
        _rewrite(self.path / "results.jsonl", [outcomes[particle].to_json() for particle in sorted(outcomes)])
        _rewrite(self.path / "records.jsonl", records.values())
        for file in (*self._line_files("results")[1:], *self._line_files("records")[1:]):
            file.unlink()
        self.outcomes = outcomes

    def noise_peaks(self) -> list[float]:
        """Return the peak of the noise of each steered particle, see `sampling.StepRecord`."""
        records = _read_lines(self.path / "records.jsonl", json.loads, "a step")
        peaks = [record.get("noise_peak") for record in records]
        return [peak for peak in peaks if peak is not None]

    def read_outcomes(self) -> None:
        """Set `outcomes` from the lines of finished particles in results.jsonl."""
        lines = _read_lines(self.path / "results.jsonl", Outcome.from_json, "a finished image")
        self.outcomes = {one.particle: one for one in lines if self._files_exist(one)}

    def count_finished(self) -> int:
        """Return the number of lines of finished particles, over all processes."""
        return sum(len(_complete_lines(file)) for file in self._line_files("results"))

    def _line_files(self, name: str) -> list[Path]:
        """Return the files "{name}.jsonl", which may not exist, and "{name}-1.jsonl", ..., which exist."""
        return [self.path / f"{name}.jsonl", *sorted(self.path.glob(f"{name}-*.jsonl"))]

    @property
    def _suffix(self) -> str:
        return f"-{self._worker}" if self._worker else ""

    @property
    def results_file(self) -> Path:
        """File with a line for every finished particle of this process."""
        return self.path / f"results{self._suffix}.jsonl"

    @property
    def records_file(self) -> Path:
        """File with a line for every step of every particle of this process."""
        return self.path / f"records{self._suffix}.jsonl"

    def image_file(self, particle: int) -> Path:
        """Return the path of a particle's PNG file."""
        return self.path / "images" / f"{particle:04d}.png"

    def latent_file(self, particle: int) -> Path:
        """Return the path of a particle's latent, the float32 tensor "latent"."""
        return self.path / "latents" / f"{particle:04d}.safetensors"

    def video_file(self, particle: int) -> Path:
        """Return the path of a particle's MP4 file."""
        return self.path / "videos" / f"{particle:04d}.mp4"

    @property
    def has_videos(self) -> bool:
        """True if the run makes videos."""
        return any(one.video for one in self.outcomes.values())

    def _files_exist(self, one: Outcome) -> bool:
        files = [self.image_file(one.particle), self.latent_file(one.particle)]
        if one.video:
            files.append(self.video_file(one.particle))
        return all(file.is_file() for file in files)

    def missing(self, particles: int) -> list[range]:
        """Return ranges of the unfinished ones among particles 0 to `particles - 1`."""
        ranges: list[range] = []
        for particle in range(particles):
            if particle in self.outcomes:
                continue
            if ranges and ranges[-1].stop == particle:
                ranges[-1] = range(ranges[-1].start, particle + 1)
            else:
                ranges.append(range(particle, particle + 1))
        return ranges

    def save_particle(self, one: Outcome, latent: Tensor, image: Tensor, fps: int = 16) -> None:
        """Write the files of a finished particle, its line last.

        Args:
            one: the outcome.
            latent: float32 (*shape).
            image: image (3, H, W) or video (3, F, H, W) with values in [0, 1].
            fps: frames per second of the video.

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
        # buffered: an unbuffered write may write a part only, without an error
        with self.results_file.open("ab") as file:
            file.write(one.to_json().encode() + b"\n")
        self.outcomes[one.particle] = one

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        write_whole(self.path / "summary.json", _pretty(summary))

    def _check_same_settings(self, before: Mapping[str, Any]) -> None:
        names = sorted((before.keys() | self.settings.keys()) - _RESUMABLE_SETTINGS)
        differences = [
            f"{name} {_describe_setting(before.get(name))}, not {_describe_setting(self.settings.get(name))}"
            for name in names
            if before.get(name) != self.settings.get(name)
        ]
        if differences:
            raise RunFolderError(
                f"{self.path} holds a run with {'; with '.join(differences)}; choose another folder, or "
                "leave these options out: --resume takes them from run.json"
            )


_RESUMABLE_SETTINGS = {"non_finite"}
"""Settings that may change when a run is resumed: no finished particle depends on them."""


def read_run(run_file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings and the compute options of a run.json, both in JSON form.

    Raises:
        RunFolderError: no run has written the file.
    """
    try:
        written: dict[str, Any] = json.loads(run_file.read_text())
        return dict(written["settings"]), dict(written["compute"])
    except (ValueError, KeyError, TypeError):
        raise RunFolderError(f"{run_file} was not written by a run; choose another folder") from None


def to_image(image: Tensor) -> Image.Image:
    """Convert (3, H, W) with values in [0, 1] to a picture; NaN becomes black."""
    values = (image.detach().float().cpu().nan_to_num().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(values.permute(1, 2, 0).numpy())


def png(image: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    data = io.BytesIO()
    image.save(data, format="png")
    return data.getvalue()


def _complete_lines(path: Path) -> list[str]:
    """Return the complete lines of a JSON lines file; an empty list if there is no file."""
    if not path.exists():
        return []
    *lines, _rest = path.read_text().split("\n")
    return lines


def _read_lines(path: Path, read: Callable[[str], Any], content: str) -> list[Any]:
    """Read the complete lines of a JSON lines file.

    Args:
        path: the file.
        read: converts a line; raises ValueError, KeyError or TypeError for a wrong line.
        content: content of a line, for the error.

    Raises:
        RunFolderError: a line is wrong.
    """
    try:
        return list(map(read, _complete_lines(path)))
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{path} has a line that does not describe {content} ({error}); delete that line"
        ) from None


def _rewrite(path: Path, lines: Iterable[str]) -> None:
    lines = list(lines)
    if lines or path.exists():
        write_whole(path, "".join(f"{line}\n" for line in lines).encode())


def _describe_setting(setting: Any) -> str:
    """Return a setting of run.json for a message; a method in the syntax of `parse_method`."""
    if isinstance(setting, dict) and setting.keys() == {"name", "arguments"}:
        return repr(str(Method(setting["name"], setting["arguments"])))
    return repr(setting)


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number_or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _pretty(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, allow_nan=False).encode() + b"\n"


def _made_with() -> dict[str, Any]:
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
