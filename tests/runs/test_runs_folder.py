"""Folder of a run: its files, the state after a crash, and resuming."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from noisetilt_kernels.runs.errors import RunFolderError
from noisetilt_kernels.runs.folder import Outcome, RunFolder, to_image
from noisetilt_kernels.sampling import StepRecord

SETTINGS = {"model": "m", "prompts": ("a", "b"), "seed": 3}


def outcome(particle: int, reward: float = 0.5) -> Outcome:
    return Outcome(particle, "a", reward, {"brightness": reward, "judge": math.nan})


def save(folder: RunFolder, particle: int) -> None:
    folder.save_particle(
        outcome(particle), torch.full((2, 4, 4), float(particle)), torch.full((3, 4, 6), 0.5)
    )


def test_a_particle_is_saved_as_image_latent_and_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", SETTINGS)
    save(folder, 1)
    with Image.open(folder.image_file(1)) as image:
        assert image.size == (6, 4) and image.getpixel((0, 0)) == (128, 128, 128)
    assert load_file(folder.latent_file(1))["latent"].eq(1).all()
    (line,) = folder.results_file.read_text().splitlines()
    assert json.loads(line) == {
        "particle": 1,
        "prompt": "a",
        "reward": 0.5,
        "parts": {"brightness": 0.5, "judge": None},
        "video": False,
    }
    assert math.isnan(Outcome.from_json(line).parts["judge"])
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert written["settings"] == {"model": "m", "prompts": ["a", "b"], "seed": 3}
    assert written["made_with"]["versions"]["torch"] == torch.__version__


def test_resuming_skips_finished_particles(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, SETTINGS)
    assert folder.missing_batches(3, 2) == [range(0, 2), range(2, 3)]
    for particle in (0, 1, 4):
        save(folder, particle)
    again = RunFolder(tmp_path, SETTINGS, resume=True)
    assert again.missing_batches(7, 1) == [range(p, p + 1) for p in (2, 3, 5, 6)]
    assert again.missing_batches(7, 2) == [range(2, 4), range(4, 6), range(6, 7)]
    assert again.missing_batches(7, 3) == [range(0, 3), range(3, 6), range(6, 7)]
    assert again.outcomes.keys() == {0, 1, 4}
    assert again.outcomes[4].reward == 0.5


def test_lines_of_unfinished_particles_are_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, SETTINGS)
    save(folder, 0)
    records = [StepRecord("base", particle, 0, 1.0).to_json() for particle in (0, 1)]
    folder.records_file.write_text("".join(f"{record}\n" for record in records) + '{"particle": 0, "st')
    with folder.results_file.open("a") as file:
        file.write('{"particle": 1, "prom')
    again = RunFolder(tmp_path, SETTINGS, resume=True)
    assert again.missing_batches(2, 1) == [range(1, 2)]
    assert again.records_file.read_text().splitlines() == records[:1]
    save(again, 1)
    results = [json.loads(line) for line in again.results_file.read_text().splitlines()]
    assert [one["particle"] for one in results] == [0, 1]


def test_a_particle_without_its_line_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash before the line, which is written last, leaves the particle missing."""
    folder = RunFolder(tmp_path, SETTINGS)
    monkeypatch.setattr(
        "noisetilt_kernels.runs.folder.png", lambda image: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        save(folder, 0)
    assert RunFolder(tmp_path, SETTINGS, resume=True).missing_batches(1, 1) == [range(0, 1)]


def test_another_run_is_not_continued(tmp_path: Path) -> None:
    RunFolder(tmp_path, SETTINGS)
    with pytest.raises(
        RunFolderError,
        match=r"seed 3, not 4; choose another folder, or give the options of that run",
    ):
        RunFolder(tmp_path, {**SETTINGS, "seed": 4}, resume=True)
    with pytest.raises(RunFolderError, match="operator None, not 'w'"):
        RunFolder(tmp_path, {**SETTINGS, "operator": "w"}, resume=True)


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", SETTINGS)
    other = {**SETTINGS, "seed": 4}
    RunFolder(tmp_path / "run", other)  # nothing was finished, so nothing is lost
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["seed"] == 4
    save(folder, 0)
    with pytest.raises(
        RunFolderError, match=r"finished images \(1\); choose another folder, or continue it with --resume"
    ):
        RunFolder(tmp_path / "run", other)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    for path in (tmp_path / "other", tmp_path / "other" / "thesis.tex"):
        with pytest.raises(RunFolderError, match="not empty and not the folder of a run"):
            RunFolder(path, SETTINGS, resume=True)


def test_images_are_rounded_and_clamped() -> None:
    values = torch.tensor([-1.0, 0.0, 0.499, 1.0, 2.0, math.nan]).expand(3, 1, 6)
    image = to_image(values)
    assert [image.getpixel((x, 0))[0] for x in range(6)] == [0, 0, 127, 255, 255, 0]
