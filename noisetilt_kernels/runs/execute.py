"""Carries out a run into its folder."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..rewards import WeightedSum
from ..sampling import FinishedParticle, RecordWriter, Reward, SamplerOptions
from ..sampling.result import best_index
from .contact_sheet import contact_sheet
from .errors import OutOfMemoryError
from .files import write_whole
from .folder import Outcome, RunFolder, png
from .settings import Machine, Settings
from .statistics import estimate
from .workers import ALONE, Workers

_MOST_ROWS, _MOST_COLUMNS = 100, 20
"""Of a contact sheet."""

_CELL, _STRIP_CELL = (160, 160), (720, 96)
"""Width and height in pixels of what an image of it is shown in, and a film strip."""


def open_folder(
    path: Path, settings: Settings, machine: Machine, workers: Workers, resume: bool
) -> RunFolder:
    """The folder of a run, for each of its processes; the first one makes it or finds that it cannot be used.

    Raises:
        RunFolderError, OSError: as of `RunFolder`. OtherProcessError: as of `Workers.wait`.
    """

    def opened() -> RunFolder:
        return RunFolder(
            path, settings.to_json(), resume=resume, machine=asdict(machine), worker=workers.rank
        )

    if workers.first:
        folder = opened()
    workers.wait()
    if not workers.first:
        folder = opened()
    workers.wait()  # what is missing is what is shared, so nobody may make any of it before all have read it
    return folder


def execute(
    settings: Settings,
    machine: Machine,
    folder: RunFolder,
    model: Any,
    reward: WeightedSum,
    held_out: Mapping[str, Reward],
    workers: Workers = ALONE,
) -> dict[str, Any]:
    """Make what is missing of a run, then its contact sheet and its summary, which is returned.

    Several processes share the particles; all of them return when the first one has written what is of the whole run,
    and the folder of each has all outcomes then.

    Args:
        settings: of the run.
        machine: how it is computed.
        folder: where to; every particle is there as soon as it is finished.
        model: a `FlowModel` or `OneStepModel` as `settings` name it, likewise the next two.
        reward: what steers.
        held_out: what judges, by name.
        workers: the processes of the run, of which each calls this with a folder of its own rank.

    Raises:
        OutOfMemoryError: the device's memory did not suffice.
        NonFiniteError: as of the samplers.
    """
    prompts = settings.every_prompt
    fps = getattr(model, "fps", 16)  # images have none

    def keep(one: FinishedParticle) -> None:
        images = one.image[None].to(model.device)
        parts = reward.parts(images, [one.prompt])  # the samplers hand over under no_grad
        parts.update({name: judge(images, [one.prompt]) for name, judge in held_out.items()})
        scores = {name: float(value) for name, value in parts.items()}
        # infinity is NaN at once, as it will be when the run is resumed: the best particle must not depend on that
        reward_of = one.reward if math.isfinite(one.reward) else math.nan
        folder.keep(Outcome(one.particle, one.prompt, reward_of, scores), one.latent, one.image, fps)

    with RecordWriter(folder.records_file) as records, memory_explained(machine):
        mine = workers.share(
            folder.missing(len(prompts)), settings.method.particles_at_once(machine.micro_batch)
        )
        if machine.offload and mine:
            # at once, or every new prompt would move the denoiser out and in again
            model.encode(
                list(dict.fromkeys(prompts[particle] for particles in mine for particle in particles))
            )
        for particles in mine:
            options = SamplerOptions(
                seed=settings.seed,
                micro_batch=machine.micro_batch,
                first_particle=particles.start,
                non_finite=settings.non_finite,
                on_finished=keep,
                on_record=records.write,
                progress=machine.progress and workers.first,
            )
            settings.method.sample(model, reward, prompts[particles.start : particles.stop], options)
    workers.wait()
    if workers.first:
        folder.gather()
        write_contact_sheet(settings, folder)
        folder.write_summary(summarise(settings, folder))
    workers.wait()
    if not workers.first:
        folder.read()
    return summarise(settings, folder)


def summarise(settings: Settings, folder: RunFolder) -> dict[str, Any]:
    """Rewards of a whole run as `Estimate`s, and the best particle of each prompt.

    Single rewards are there beside what steered if it was a sum, and the held-out ones.
    """
    outcomes = [folder.outcomes[particle] for particle in range(len(settings.every_prompt))]
    names = [*settings.shown, *settings.held_out]
    return {
        "method": str(settings.method),
        "particles": len(outcomes),
        "nfe": settings.nfe,
        "reward": estimate(one.reward for one in outcomes).to_json(),
        "parts": {name: estimate(one.parts[name] for one in outcomes).to_json() for name in names},
        "best": _best(settings, outcomes),
    }


def write_contact_sheet(settings: Settings, folder: RunFolder) -> None:
    """contact-sheet.png: a row for each of the first prompts, with its first particles; the best of all is framed."""
    outcomes = [folder.outcomes[particle] for particle in range(len(settings.every_prompt))]
    best = set(_best(settings, outcomes))
    starts = range(0, len(outcomes), settings.particles)[:_MOST_ROWS]
    rows = [range(start, start + min(settings.particles, _MOST_COLUMNS)) for start in starts]
    sheet = contact_sheet(
        [[folder.image_file(particle) for particle in row] for row in rows],
        settings.prompts[:_MOST_ROWS],
        [[f"{outcomes[particle].reward:#.4g}" for particle in row] for row in rows],
        [[particle in best for particle in row] for row in rows],
        cell=_STRIP_CELL if folder.has_videos else _CELL,
    )
    write_whole(folder.path / "contact-sheet.png", png(sheet))


def _best(settings: Settings, outcomes: list[Outcome]) -> list[int]:
    """The best particle of each prompt."""
    rewards = [one.reward for one in outcomes]
    k = settings.particles
    return [start + best_index(rewards[start : start + k]) for start in range(0, len(rewards), k)]


@contextmanager
def memory_explained(machine: Machine) -> Iterator[None]:
    """Turns a failure to get memory into one sentence."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        fewer = (
            f"a smaller --micro-batch than {machine.micro_batch} with --resume, "
            if machine.micro_batch > 1
            else ""
        )
        offload = (
            ""
            if machine.offload or torch.device(machine.device).type == "cpu"
            else "--offload with --resume, "
        )
        raise OutOfMemoryError(
            f"the memory of {machine.device} did not suffice; what was finished is kept. Try {fewer}{offload}"
            "or smaller images (--height, --width; --num-frames of videos) in another folder"
        ) from error
