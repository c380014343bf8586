"""Folder of a run: images, latents, the record of every step, and everything needed to repeat the run.

    run.json                  settings, versions and compute options
    images/0000.png           image of particle 0; for a video some of its frames
    videos/0000.mp4           only if the model makes videos
    latents/0000.safetensors
    results.jsonl             a line for every finished particle
    records.jsonl             a line for every step of every particle
    contact-sheet.png         written at the end
    features.safetensors      written at the end, for measures of diversity
    plan.json                 memory and time that were expected, see `Planned`
    summary.json              written at the end
    index.html                written at the end, see `noisetilt_kernels.pages`

A particle's line in results.jsonl is written after its other files, so a particle with a line is complete
even if the run is killed. Files that were damaged later are found on resuming, and their particles are made
again. If several processes make a run, process 1 writes lines to results-1.jsonl and records-1.jsonl, and so
on; `RunFolder.merge_lines` merges them. While a run writes, the file .lock names its first process.
"""

import io
import json
import logging
import math
import platform
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from ..checks import json_fields, shown
from ..sampling import StepRecord
from ..sampling.methods import Method
from ..versions import versions
from .errors import RunFolderError
from .files import append_line, is_temporary, remove_temporary, write_whole
from .lock import LOCK, check_unlocked
from .videos import check_mp4, film_strip, mp4

_LOG = logging.getLogger(__name__)

_FEATURES = "features.safetensors"
_PLAN = "plan.json"


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
        values["reward"] = finite_or_none(self.reward)
        values["parts"] = {name: finite_or_none(value) for name, value in self.parts.items()}
        return json.dumps(values, allow_nan=False)

    @staticmethod
    def from_json(line: str | bytes) -> "Outcome":
        """Return the outcome of a line from `to_json`.

        Raises:
            ValueError: the line does not describe an outcome.
        """
        number = (int, float, type(None))
        kinds = {"particle": (int,), "prompt": (str,), "reward": number, "parts": (dict,), "video": (bool,)}
        values = json_fields(line, kinds)
        parts = json_fields(json.dumps(values["parts"]), dict.fromkeys(values["parts"], number))
        values["parts"] = {name: _number_or_nan(value) for name, value in parts.items()}
        return Outcome(**{**values, "reward": _number_or_nan(values["reward"])})


class Results(NamedTuple):
    """Finished particles of a run."""

    outcomes: dict[int, Outcome]
    """Outcomes by particle."""
    seconds: dict[int, float]
    """Time that the steps of a particle took: in the model, the reward and the operator."""
    features: Mapping[str, Tensor] = MappingProxyType({})
    """Features of the particles of a run that has ended, by name, (particles, d) each."""


class Planned(NamedTuple):
    """Memory and time that a run was expected to take."""

    memory: int | None = None
    """Memory in bytes, see `plan.describe`; of a comparison that of all its methods together."""
    seconds: float | None = None
    """Time for each image, see `plan.measure_time`; None if it was not measured."""


class RunFolder:
    """Files of a run.

    Args:
        path: the folder; created if it does not exist.
        settings: settings of the run in JSON form.
        resume: continue the run in the folder, which must have the same settings.
        compute: compute options in JSON form, to be written to run.json.
        worker: number of this process; process 0 creates the folder before the others open it.

    Raises:
        RunFolderError: the folder cannot be used, see `check_folder`.
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
        before = _check_content(path, self.settings, resume)
        path.mkdir(parents=True, exist_ok=True)
        for folder in (path, *(path / name for name in ("images", "latents", "videos"))):
            remove_temporary(folder)
        if not resume or before is None:  # before all other files: it marks the folder as a run
            write_whole(
                path / "run.json",
                _pretty({"settings": self.settings, "made_with": _made_with(), "compute": dict(compute)}),
            )
        else:
            _warn_of_other_rounding(path, before, compute)
            _keep_settings(path / "run.json", self.settings)
        for name in ("images", "latents"):
            (path / name).mkdir(exist_ok=True)
        self.merge_lines(self._check_files)

    def merge_lines(self, keep: Callable[[Outcome], bool] = lambda one: True) -> None:
        """Merge the lines of all processes, drop lines of unfinished particles, and set `outcomes`.

        Args:
            keep: returns False for a particle that counts as unfinished in spite of its line.
        """
        finished = _all_outcomes(self.path, self.settings)
        outcomes = {particle: one for particle, one in finished.items() if keep(one)}
        records = _records_of(self.path, outcomes)
        _rewrite(self.path / "results.jsonl", [outcomes[particle].to_json() for particle in sorted(outcomes)])
        _rewrite(self.path / "records.jsonl", [record.to_json() for record in records.values()])
        for name in ("results", "records"):
            for file in _line_files(self.path, name)[1:]:
                file.unlink()
        self.outcomes = outcomes

    def noise_peaks(self) -> list[float]:
        """Return the peak of the noise of each steered particle, see `sampling.StepRecord`."""
        records = _read_records(self.path / "records.jsonl")
        return [record.noise_peak for record in records if record.noise_peak is not None]

    def read_outcomes(self) -> None:
        """Set `outcomes` from the lines of finished particles."""
        self.outcomes = _all_outcomes(self.path, self.settings)

    def results(self) -> Results:
        """Return the finished particles."""
        return Results(self.outcomes, _seconds_of(self.path, self.outcomes), _features_of(self.path))

    def _check_files(self, one: Outcome) -> bool:
        """Return True if the files of a particle can be read; otherwise report the first that cannot."""
        checks = {
            self.image_file(one.particle): _check_png,
            self.latent_file(one.particle): _check_latent,
            **({self.video_file(one.particle): check_mp4} if one.video else {}),
        }
        for file, check in checks.items():
            try:
                check(file)
            except Exception as error:  # damaged files cause errors of many classes
                what = f"is damaged ({error})" if file.exists() else "is missing"
                _LOG.warning("%s %s; particle %d is made again", file, what, one.particle)
                return False
        return True

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

    def missing_batches(self, particles: int, size: int) -> list[range]:
        """Return the micro-batches that have an unfinished particle.

        Args:
            particles: number of particles of the run.
            size: number of particles in a micro-batch. Micro-batches start at multiples of it, as in a run
                from the first particle; rounding in a network depends on the whole micro-batch.
        """
        batches = (range(start, min(start + size, particles)) for start in range(0, particles, size))
        return [batch for batch in batches if any(particle not in self.outcomes for particle in batch)]

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
        append_line(self.results_file, one.to_json())
        self.outcomes[one.particle] = one

    def write_features(self, features: Mapping[str, Tensor]) -> None:
        """Write features.safetensors: features of all particles by name, (particles, d) each."""
        write_whole(self.path / _FEATURES, save(dict(features)))

    def write_plan(self, planned: "Planned") -> None:
        """Write plan.json. A time that is not known now stays as an earlier call has measured it."""
        if planned.seconds is None:
            planned = planned._replace(seconds=read_plan(self.path).seconds)
        write_whole(self.path / _PLAN, _pretty(planned._asdict()))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        write_whole(self.path / "summary.json", _pretty(summary))


def check_folder(path: Path, settings: Mapping[str, Any], resume: bool) -> None:
    """Check that a run can use a folder, without writing anything.

    Args:
        path: the folder, which need not exist.
        settings: settings of the run in JSON form.
        resume: True to continue the run in the folder.

    Raises:
        RunFolderError: another process writes to the folder; the folder has finished particles and `resume`
            is False; it has other files, a run with other settings, or lines that cannot be read; or it is a
            link to nothing.
        OSError: the folder cannot be read.
    """
    check_unlocked(path)
    settings = json.loads(json.dumps(settings))
    if _check_content(path, settings, resume) is not None:
        for file in _line_files(path, "results"):
            _read_outcomes(file, settings)
        for file in _line_files(path, "records"):
            _read_records(file)


def read_results(path: Path, settings: Mapping[str, Any]) -> Results:
    """Return the particles that a run has finished, also while it goes on.

    Args:
        path: folder of the run; without run.json there are no particles.
        settings: settings of the run in JSON form.

    Raises:
        RunFolderError: the folder holds a run with other settings, or a line is wrong.
    """
    if not (path / "run.json").exists():
        return Results({}, {})
    settings = json.loads(json.dumps(settings))
    _check_same_settings(path, read_run(path / "run.json")[0], settings)
    outcomes = _all_outcomes(path, settings)
    return Results(outcomes, _seconds_of(path, outcomes), _features_of(path))


class Snapshot(NamedTuple):
    """Content of a run's folder at a moment."""

    settings: dict[str, Any]
    """Settings in JSON form."""
    compute: dict[str, Any]
    """Compute options in JSON form."""
    results: Results
    """Finished particles."""
    records: dict[int, list[StepRecord]]
    """Records of the steps by particle, also of particles that are not finished."""


def read_snapshot(path: Path) -> Snapshot:
    """Return what the folder of a run holds, also while the run goes on. Nothing is locked or changed.

    Raises:
        RunFolderError: run.json or a line is wrong.
        OSError: a file cannot be read.
    """
    settings, compute = read_run(path / "run.json")
    outcomes = _all_outcomes(path, settings)
    records: dict[int, list[StepRecord]] = {}
    for _, record in sorted(_records_of(path).items()):
        records.setdefault(record.particle, []).append(record)
    seconds = {particle: math.fsum(map(_seconds, records.get(particle, ()))) for particle in outcomes}
    return Snapshot(settings, compute, Results(outcomes, seconds, _features_of(path)), records)


def read_plan(path: Path) -> Planned:
    """Return what the run in a folder was expected to take; nothing is known without a readable plan.json."""
    kinds = {"memory": (int, type(None)), "seconds": (int, float, type(None))}
    try:
        return Planned(**json_fields((path / _PLAN).read_bytes(), kinds))
    except (OSError, ValueError):
        return Planned()


def peak_memory(path: Path) -> int | None:
    """Return the largest memory in bytes that the summary.json of a run has, or None."""
    file = path / "summary.json"
    found = json.loads(file.read_bytes()).get("peak_memory") if file.exists() else None
    return None if found is None else int(found)


def check_link(path: Path) -> None:
    """Raise RunFolderError for a symbolic link to nothing, where no folder can be made."""
    if path.is_symlink() and not path.exists():
        raise RunFolderError(
            f"{path} is a symbolic link to {path.readlink()}, which does not exist; "
            "create that folder, or choose another"
        )


def count_finished(path: Path) -> int:
    """Return the number of lines of finished particles in the folder of a run, over all processes."""
    return sum(len(_complete_lines(file)) for file in _line_files(path, "results"))


def _check_content(path: Path, settings: Mapping[str, Any], resume: bool) -> dict[str, Any] | None:
    """Check the content of a folder for a run, see `check_folder`.

    Returns:
        Compute options of the run in the folder, in JSON form; None without run.json.
    """
    check_link(path)
    run_file = path / "run.json"
    if not run_file.exists():
        if path.exists() and (not path.is_dir() or not all(map(_is_leftover, path.iterdir()))):
            raise RunFolderError(f"{path} is not empty and not the folder of a run; choose another folder")
        return None
    before, compute = read_run(run_file)
    if resume:
        _check_same_settings(path, before, settings)
    elif finished := count_finished(path):
        raise RunFolderError(
            f"{path} already holds a run with finished images ({finished}); "
            "choose another folder, or continue it with --resume"
        )
    return compute


def _is_leftover(path: Path) -> bool:
    """Return True for a file that a run may leave in a folder without run.json."""
    return path.name == LOCK or is_temporary(path)


def read_run(run_file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings and the compute options of a run.json, both in JSON form.

    Raises:
        RunFolderError: the file was not written by a run of this package.
    """
    try:
        if not run_file.is_file():
            raise ValueError("it is not a file")
        kinds = {"settings": (dict,), "made_with": (dict,), "compute": (dict,)}
        written = json_fields(run_file.read_bytes(), kinds)
        json_fields(json.dumps(written["made_with"].get("versions")), {"noisetilt_kernels": (str,)})
    except ValueError as error:
        raise RunFolderError(
            f"{run_file} was not written by a run of this package ({error}); choose another folder"
        ) from None
    return written["settings"], written["compute"]


_RESUMABLE_SETTINGS = {"diversity", "non_finite", "rounds"}
"""Settings that may change when a run is resumed: no finished particle depends on them."""


def _check_same_settings(path: Path, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    names = sorted((before.keys() | settings.keys()) - _RESUMABLE_SETTINGS)
    other = [
        f"{name} {_describe_setting(before.get(name))}, not {_describe_setting(settings.get(name))}"
        for name in names
        if before.get(name) != settings.get(name)
    ]
    if other:
        raise RunFolderError(
            f"{path} holds a run with {'; with '.join(other)}; choose another folder, or give the options of "
            "that run (sample, optimize and compare with --resume take those left out from run.json)"
        )


def _keep_settings(run_file: Path, settings: Mapping[str, Any]) -> None:
    """Write resumable settings to run.json: the measures of diversity, and the rounds if there are more.

    Fewer rounds remove no particles.
    """
    written = json.loads(run_file.read_bytes())
    before = written["settings"]
    kept = dict(before)
    if settings.get("diversity", {}) != before.get("diversity", {}):
        kept["diversity"] = settings.get("diversity", {})
    if settings.get("rounds", 1) > before.get("rounds", 1):
        kept["rounds"] = settings["rounds"]
    if kept != before:
        write_whole(run_file, _pretty({**written, "settings": kept}))


_ROUNDING = {
    "device": "--device",
    "micro_batch": "--micro-batch",
    "frames_at_once": "--frames-at-once",
    "threads": "OMP_NUM_THREADS",
}
"""Compute options that change rounding, with their names for the user."""


def _warn_of_other_rounding(path: Path, before: Mapping[str, Any], compute: Mapping[str, Any]) -> None:
    """Report compute options that change the rounding of the images that are still to be made."""
    other = [
        f"{option} {before[name]}, not {compute[name]}"
        for name, option in _ROUNDING.items()
        if name in before and name in compute and before[name] != compute[name]
    ]
    if other:
        _LOG.warning(
            "%s was begun with %s; images that are made now may differ from those of a run in one piece, "
            "because the operator can amplify rounding",
            path,
            ", and ".join(other),
        )


def _check_png(file: Path) -> None:
    """Raise an error unless a PNG file is whole: its checksums are right, up to the last part."""
    with Image.open(file, formats=["PNG"]) as image:
        image.verify()


def _check_latent(file: Path) -> None:
    """Raise an error unless a file holds a latent with values."""
    with safe_open(file, framework="pt") as tensors:
        if not tensors.get_tensor("latent").numel():
            raise ValueError("it has no values")


def to_image(image: Tensor) -> Image.Image:
    """Convert (3, H, W) with values in [0, 1] to a picture; NaN becomes black."""
    values = (image.detach().float().cpu().nan_to_num().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(values.permute(1, 2, 0).numpy())


def png(image: Image.Image) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    data = io.BytesIO()
    image.save(data, format="png")
    return data.getvalue()


def _line_files(path: Path, name: str) -> list[Path]:
    """Return the files "{name}.jsonl", which may not exist, and "{name}-1.jsonl", ..., which exist."""
    return [path / f"{name}.jsonl", *sorted(path.glob(f"{name}-*.jsonl"))]


def _complete_lines(path: Path) -> list[bytes]:
    """Return the complete lines of a JSON lines file; an empty list if there is no file."""
    try:
        *lines, _rest = path.read_bytes().split(b"\n")
    except FileNotFoundError:  # also if a run that goes on has merged it just now
        return []
    return lines


_Line = TypeVar("_Line", Outcome, StepRecord)


def _read_lines(path: Path, read: Callable[[bytes], _Line], content: str) -> list[_Line]:
    """Read the complete lines of a JSON lines file.

    Args:
        path: the file.
        read: converts a line; raises ValueError for a wrong line.
        content: content of a line, for the error.

    Raises:
        RunFolderError: a line is wrong.
    """
    results = []
    for number, line in enumerate(_complete_lines(path), start=1):
        try:
            results.append(read(line))
        except ValueError as error:
            raise RunFolderError(
                f"{path}, line {number}, does not describe {content} ({error}); delete that line"
            ) from None
    return results


def _read_outcomes(path: Path, settings: Mapping[str, Any]) -> list[Outcome]:
    """Read a file of results; every line must have all rewards of the settings."""
    names = [*settings.get("rewards", ()), *settings.get("held_out", ())]

    def read(line: bytes) -> Outcome:
        one = Outcome.from_json(line)
        for name in names:
            if name not in one.parts:
                raise ValueError(f"its 'parts' has no {name!r}")
        return one

    return _read_lines(path, read, "a finished image")


def _all_outcomes(path: Path, settings: Mapping[str, Any]) -> dict[int, Outcome]:
    """Return the finished particles of all processes."""
    lines = (one for file in _line_files(path, "results") for one in _read_outcomes(file, settings))
    return {one.particle: one for one in lines}


def _read_records(path: Path) -> list[StepRecord]:
    return _read_lines(path, StepRecord.from_json, "a step")


def _records_of(path: Path, particles: Collection[int] | None = None) -> dict[tuple[int, int], StepRecord]:
    """Return the records of some particles, or of all, by particle and step, of all processes."""
    lines = (record for file in _line_files(path, "records") for record in _read_records(file))
    return {
        (record.particle, record.step): record
        for record in lines
        if particles is None or record.particle in particles
    }


def _seconds_of(path: Path, particles: Collection[int]) -> dict[int, float]:
    """Return the time that the steps of each particle took."""
    seconds = dict.fromkeys(particles, 0.0)
    for record in _records_of(path, particles).values():
        seconds[record.particle] += _seconds(record)
    return seconds


def _seconds(record: StepRecord) -> float:
    return record.seconds_model + record.seconds_reward + record.seconds_whitening


def _features_of(path: Path) -> dict[str, Tensor]:
    """Return the features of `RunFolder.write_features`; empty without a readable file."""
    try:
        return load((path / _FEATURES).read_bytes())
    except (OSError, SafetensorError):
        return {}


def _rewrite(path: Path, lines: Iterable[str]) -> None:
    lines = list(lines)
    if lines or path.exists():
        write_whole(path, "".join(f"{line}\n" for line in lines).encode())


def _describe_setting(setting: Any) -> str:
    """Return a setting of run.json for a message; a method in the syntax of `parse_method`."""
    if isinstance(setting, dict) and setting.keys() == {"name", "arguments"}:
        with suppress(ValueError, TypeError):  # this version may not have that method
            return repr(str(Method(setting["name"], setting["arguments"])))
    return shown(setting)


def finite_or_none(value: float) -> float | None:
    """Return a number as JSON has it: NaN and infinity become None."""
    return value if math.isfinite(value) else None


def _number_or_nan(value: float | None) -> float:
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        raise ValueError("a number is too large") from None


def _pretty(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, allow_nan=False).encode() + b"\n"


def _made_with() -> dict[str, Any]:
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
