"""Execution of a run into its folder."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..pages.render import write_page
from ..rewards import WeightedSum
from ..rewards.checks import is_out_of_memory
from ..rewards.features import Features
from ..sampling import FinishedParticle, RecordWriter, Reward, SamplerOptions, StepRecord
from ..sampling.methods import Method
from ..sampling.result import best_index
from ..sampling.reward_call import call_reward
from ..sampling.typicality import COLLAPSED
from .contact_sheet import contact_sheet
from .diversity import features_of_files
from .errors import OutOfMemoryError
from .files import write_whole
from .folder import Outcome, RunFolder, check_folder, finite_or_none, peak_memory, png
from .lock import locked
from .settings import ComputeOptions, Settings
from .statistics import estimate
from .workers import SINGLE_PROCESS, Workers

_MOST_ROWS, _MOST_COLUMNS = 100, 20
"""Largest size of a contact sheet."""

_CELL, _STRIP_CELL = (160, 160), (720, 96)
"""Width and height in pixels of a cell of the contact sheet, for images and for film strips."""


@contextmanager
def open_folder(
    path: Path, settings: Settings, compute: ComputeOptions, workers: Workers, resume: bool
) -> Iterator[RunFolder]:
    """Open the folder of a run in each of its processes, and hold its lock within the block.

    The first process creates and checks the folder. All processes of the run share the lock.

    Raises:
        RunFolderError, OSError: the folder cannot be used, see `check_folder`.
        OtherProcessError: another process has ended.
    """

    def open_here() -> RunFolder:
        return RunFolder(
            path, settings.to_json(), resume=resume, compute=compute.to_json(), worker=workers.rank
        )

    with ExitStack() as stack:
        if workers.is_first:
            check_folder(path, settings.to_json(), resume)  # first: a lock does not belong in another folder
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path))
            folder = open_here()
        workers.wait()
        if not workers.is_first:
            folder = open_here()
        # every process must know the missing particles before one of them is finished
        workers.wait()
        yield folder


def execute(
    settings: Settings,
    compute: ComputeOptions,
    folder: RunFolder,
    model: Any,
    reward: WeightedSum,
    held_out: Mapping[str, Reward],
    workers: Workers = SINGLE_PROCESS,
    features: Mapping[str, Features] = MappingProxyType({}),
) -> dict[str, Any]:
    """Sample the missing particles of a run, then write its contact sheet, its summary and its page.

    A micro-batch with a missing particle is computed as a whole, as in a run in one piece. Several processes
    share the micro-batches. All of them return after the first one has written the summary; the
    folder of each process then has all outcomes.

    Args:
        settings: settings of the run.
        compute: how to compute it.
        folder: folder of the run; every particle is written as soon as it is finished.
        model: the `FlowModel` or `OneStepModel` named by `settings`.
        reward: the reward that steers, named by `settings`.
        held_out: held-out rewards by name, named by `settings`.
        workers: processes of the run. Each of them calls this function with the folder opened for its rank.
        features: features by name that the measures of diversity of `settings` compare.

    Returns:
        The summary, see `summarise`, and "peak_memory": the largest memory in bytes that this process has
        allocated on its GPU, also in earlier calls; None without a GPU.

    Raises:
        OutOfMemoryError: the device ran out of memory.
        NonFiniteError: a reward, gradient or latent is not finite.
    """
    prompts = settings.particle_prompts
    fps = getattr(model, "fps", 16)  # models of images have no frame rate
    for judge in (*(one for _, one in reward.rewards.values()), *held_out.values()):
        if hasattr(judge, "fps"):
            judge.fps = fps

    finished = frozenset(folder.outcomes)

    def save(one: FinishedParticle) -> None:
        if one.particle in finished:
            return
        images = one.image[None].to(model.device)
        parts = reward.parts(images, [one.prompt])  # samplers call this under no_grad
        parts.update(
            {name: call_reward(name, judge, images, [one.prompt]) for name, judge in held_out.items()}
        )
        scores = {name: float(value) for name, value in parts.items()}
        # infinity is written as null and read as NaN; NaN from the start keeps the best particle on resuming
        reward_or_nan = one.reward if math.isfinite(one.reward) else math.nan
        folder.save_particle(
            Outcome(one.particle, one.prompt, reward_or_nan, scores), one.latent, one.image, fps
        )

    def record(step: StepRecord) -> None:
        if step.particle not in finished:
            records.write(step)

    on_gpu = torch.device(compute.device).type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(compute.device)
    with RecordWriter(folder.records_file) as records, out_of_memory_explained(compute):
        at_once = settings.method.particles_at_once(compute.micro_batch)
        mine = workers.share(folder.missing_batches(len(prompts), at_once))
        if compute.offload and mine:
            # all prompts at once; otherwise every new prompt would move the denoiser off the GPU and back
            model.encode(
                list(dict.fromkeys(prompts[particle] for particles in mine for particle in particles))
            )
        for particles in mine:
            options = SamplerOptions(
                seed=settings.seed,
                micro_batch=compute.micro_batch,
                first_particle=particles.start,
                non_finite=settings.non_finite,
                on_finished=save,
                on_record=record,
                progress=compute.progress and workers.is_first,
            )
            settings.method.sample(model, reward, prompts[particles.start : particles.stop], options)
    peak = peak_memory(folder.path)
    if on_gpu and mine:
        peak = max(peak or 0, torch.cuda.max_memory_allocated(compute.device))
    workers.wait()
    if workers.is_first:
        folder.merge_lines()
        if features:
            files = [folder.image_file(particle) for particle in range(len(prompts))]
            with out_of_memory_explained(compute):
                folder.write_features(
                    {name: features_of_files(files, one, compute.device) for name, one in features.items()}
                )
        write_contact_sheet(settings, folder)
        folder.write_summary({**summarise(settings, folder), "peak_memory": peak})
        write_page(folder.path)
    workers.wait()
    if not workers.is_first:
        folder.read_outcomes()
    return {**summarise(settings, folder), "peak_memory": peak}


def summarise(settings: Settings, folder: RunFolder) -> dict[str, Any]:
    """Return mean rewards with confidence intervals, and the best particle of each prompt, of a finished run.

    "parts" has the single rewards if the steering reward is a sum of several, and the held-out rewards.
    "diversity" has the measures of diversity: their mean over the prompts, where they have a value for each
    prompt, and "all_images", the value of all images together.
    "noise_peak" is the mean peak of the steered noise (`sampling.StepRecord`), or None; "warnings" has a
    sentence if it says that the images have collapsed.
    """
    peaks = folder.noise_peaks()
    peak = math.fsum(peaks) / len(peaks) if peaks else None  # in any order of the lines
    outcomes = [folder.outcomes[particle] for particle in range(len(settings.particle_prompts))]
    return {
        "method": str(settings.method),
        "particles": len(outcomes),
        "nfe": settings.nfe,
        "reward": estimate(one.reward for one in outcomes).to_json(),
        "parts": {
            name: estimate(one.parts[name] for one in outcomes).to_json() for name in settings.score_names
        },
        "diversity": _diversity(settings, folder.results().features),
        "best": _best(settings, outcomes),
        "noise_peak": peak,
        "warnings": [] if peak is None or peak <= COLLAPSED else [_collapse_warning(settings.method, peak)],
    }


def _diversity(settings: Settings, features: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the measures of diversity by name in the form of summary.json."""
    sets = [settings.particles_of(index) for index in range(len(settings.prompts))]
    return {
        one.name: {
            **estimate(one.values(features, sets).values()).to_json(),
            "all_images": finite_or_none(one.value(features[one.features])),
        }
        for one in settings.diversity
    }


_WEAKER = {
    "ntrk": "a smaller rho",
    "dps": "a smaller strength",
    "freedom": "a smaller strength",
    "das": "a larger alpha",
    "psi": "a larger alpha or a smaller clip",
    **dict.fromkeys(("wgnc", "reno", "prno", "mpgr", "dno"), "fewer iterations or a smaller lr"),
}
"""Change that weakens the guidance of a sampler."""


def _collapse_warning(method: Method, peak: float) -> str:
    now = ", ".join(
        f"{name}={method.argument(name)}"
        for name in ("operator", "rho", "strength", "alpha", "lr")
        if name in method.sampler.parameters
    )
    weaker = _WEAKER.get(method.name, "weaker guidance")
    return (
        f"{method.name} ({now}) has probably destroyed the images: the highest peak in the spectrum of its "
        f"noise is {peak:.1f} times that of Gaussian noise, and the limit is {COLLAPSED:g}; look at the "
        f"contact sheet, and try {weaker}"
    )


def write_contact_sheet(settings: Settings, folder: RunFolder) -> None:
    """Write contact-sheet.png with a row for each of the first prompts; the best particle is framed."""
    outcomes = [folder.outcomes[particle] for particle in range(len(settings.particle_prompts))]
    best = set(_best(settings, outcomes))
    rows = [
        settings.particles_of(index)[:_MOST_COLUMNS] for index in range(len(settings.prompts[:_MOST_ROWS]))
    ]
    kind = "video" if folder.has_videos else "image"
    sheet = contact_sheet(
        [[folder.image_file(particle) for particle in row] for row in rows],
        settings.prompts[:_MOST_ROWS],
        [[f"{particle:04d}: {outcomes[particle].reward:#.4g}" for particle in row] for row in rows],
        [[particle in best for particle in row] for row in rows],
        cell=_STRIP_CELL if folder.has_videos else _CELL,
        column_titles=[
            f"{kind} {column + 1} of {settings.particles * settings.rounds}" for column in range(len(rows[0]))
        ],
    )
    write_whole(folder.path / "contact-sheet.png", png(sheet))


def _best(settings: Settings, outcomes: list[Outcome]) -> list[int]:
    """Return the best particle of each prompt."""
    groups = map(settings.particles_of, range(len(settings.prompts)))
    return [group[best_index([outcomes[particle].reward for particle in group])] for group in groups]


@contextmanager
def out_of_memory_explained(compute: ComputeOptions) -> Iterator[None]:
    """Turn a failed allocation into an OutOfMemoryError with advice."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fewer = (
            f"a smaller --micro-batch than {compute.micro_batch} with --resume, "
            if compute.micro_batch > 1
            else ""
        )
        offload = (
            ""
            if compute.offload or torch.device(compute.device).type == "cpu"
            else "--offload with --resume, "
        )
        raise OutOfMemoryError(
            f"{compute.device} ran out of memory; finished particles are kept. Try {fewer}{offload}"
            "or smaller images (--height, --width; --num-frames for videos) in another folder"
        ) from error
