"""Folders of runs that are made without a model, for tests of pages."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from noisetilt_kernels.rewards import parse_rewards
from noisetilt_kernels.runs.comparison_folder import Comparison, folder_name, write_comparison
from noisetilt_kernels.runs.folder import Outcome, RunFolder
from noisetilt_kernels.runs.settings import ComputeOptions, Settings
from noisetilt_kernels.sampling import RecordWriter, StepRecord
from noisetilt_kernels.sampling.methods import parse_method

PROMPTS = ("a handwritten seven", "a <script>window.broken = true</script> three")
STEPS = 5


def settings_of(method: str = "ntrk:rho=0.01", particles: int = 3) -> Settings:
    """Return the settings of a run with two prompts and a judge."""
    return Settings(
        "digits",
        PROMPTS,
        parse_method(method),
        parse_rewards("brightness"),
        held_out=parse_rewards("digit-judge"),
        particles=particles,
    )


def make_run(
    path: Path,
    settings: Settings,
    finished: int | None = None,
    *,
    side: int = 32,
    fallbacks: Sequence[int] = (),
    peaks: Sequence[float] = (),
    ended: bool = True,
) -> RunFolder:
    """Write the folder of a run.

    Args:
        path: the folder.
        settings: settings of the run.
        finished: number of finished particles; the next one has begun. None is all.
        side: height and width of the images.
        fallbacks: particles with an unguided step.
        peaks: peak of the noise of the first particles; others have 1.
        ended: True to write summary.json.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path, settings.to_json(), compute=ComputeOptions().to_json())
    count = settings.count if finished is None else finished
    with RecordWriter(folder.records_file) as records:
        for particle in range(count):
            for record in _steps(settings, particle, STEPS, fallbacks, peaks):
                records.write(record)
            add_particle(folder, settings, particle, side)
        if count < settings.count:
            for record in _steps(settings, count, 2, (), ()):
                records.write(record)
    if ended:
        folder.write_summary({"warnings": [], "peak_memory": None})
    return folder


def add_particle(folder: RunFolder, settings: Settings, particle: int, side: int = 32) -> None:
    """Add a finished particle with a random image to the folder of a run."""
    generator = torch.Generator().manual_seed(particle)
    image = torch.rand(3, side, side, generator=generator)
    reward = 0.1 + 0.05 * particle
    parts = {"brightness": reward, "digit-judge": 0.9 - 0.1 * particle}
    prompt = settings.particle_prompts[particle]
    folder.save_particle(Outcome(particle, prompt, reward, parts), torch.zeros(4), image)


def make_comparison(path: Path, methods: Sequence[str] = ("base", "ntrk:rho=0.01")) -> None:
    """Write the folder of a comparison."""
    path.mkdir(parents=True)
    comparison = Comparison(tuple(methods))
    write_comparison(path, comparison)
    for entry in comparison.entries:
        make_run(path / folder_name(entry.method), replace(settings_of(), method=entry.method))


def make_experiment(path: Path) -> None:
    """Write the folder of an experiment with two comparisons."""
    for name in ("ink", "symmetry"):
        make_comparison(path / name)
    rows = [
        {"label": "Plain", "method": "base", "best_of": 1},
        {"label": "Tilted", "method": "ntrk:rho=0.01", "best_of": 1},
    ]
    report = {
        "title": "Two tables",
        "source": "A paper, Table 1",
        "comparisons": [
            {"name": name, "title": f"Table of {name}", "rows": rows} for name in ("ink", "symmetry")
        ],
    }
    (path / "report.json").write_text(json.dumps(report))


def _steps(
    settings: Settings, particle: int, count: int, fallbacks: Sequence[int], peaks: Sequence[float]
) -> list[StepRecord]:
    """Return the records of a particle."""
    noise = random.Random(particle)
    peak = peaks[particle] if particle < len(peaks) else 1.0
    return [
        StepRecord(
            settings.method.name,
            particle,
            step,
            1 - step / STEPS,
            reward=0.1 * step + 0.01 * noise.random(),
            gradient_norm=1 + noise.random(),
            cosine=0.5,
            seconds_model=0.25,
            fallback="gradient is not finite" if step == 1 and particle in fallbacks else None,
            noise_peak=peak if step == count - 1 else None,
        )
        for step in range(count)
    ]
