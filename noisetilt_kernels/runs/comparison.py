"""Comparison of methods with the same prompts and seeds: runs, a table, plots and a contact sheet."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from PIL import Image

from ..models.memory import latent_shape
from ..pages.render import write_page
from ..sampling.methods import Method
from .comparison_folder import Comparison, folder_name, write_comparison
from .contact_sheet import contact_sheet
from .entry import runs_of
from .errors import RunFolderError
from .execute import execute, open_folder
from .files import remove_temporary, write_whole
from .folder import Planned, RunFolder, check_folder, check_link, png
from .loading import check_settings, load_all_features, load_model, load_rewards
from .lock import check_unlocked, locked
from .plan import describe, guided_steps
from .plots import draw_comparison, figure_png
from .settings import ComputeOptions, Settings
from .table import Row, markdown, tabulate
from .workers import SINGLE_PROCESS, Workers

_LOG = logging.getLogger(__name__)

_COMPARISON_FILES = ("table.md", "comparison.json", "comparison.png", "contact-sheet.png", "run.json")
"""Files that show that a folder already holds a comparison, or (run.json) a run."""


def compare(
    settings: Settings,
    comparison: Comparison,
    compute: ComputeOptions,
    out: Path,
    *,
    resume: bool = False,
    workers: Workers = SINGLE_PROCESS,
) -> list[Row]:
    """Run every method with the same settings, each into a subfolder of `out`, and compare the results.

    Args:
        settings: settings of all runs; `settings.method` and `settings.rounds` are not used.
        comparison: methods to compare; differences are to the first one, see `tabulate`.
        compute: how to compute the runs.
        out: folder; table.md, comparison.json, comparison.png, contact-sheet.png and index.html are written
            to it at the end.
        resume: continue the runs in the folders.
        workers: processes of the comparison. Each of them calls this function; the first one writes the
            files.

    Returns:
        Rows of the table.

    Raises:
        ValueError: two methods are the same, an argument of a method is out of its range, or a method cannot
            use the model or guides no step.
        RunFolderError: a folder cannot be used, see `RunFolder`.
        ModelError, RewardError, ImportError: the model or a reward cannot be loaded.
    """
    runs = check(settings, comparison, compute)
    if workers.is_first:
        check_folders(runs, out, resume)
        check_latents(settings, runs)
    with ExitStack() as stack:
        if workers.is_first:
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(out))
            remove_temporary(out)
            write_comparison(out, comparison)
        folders = {
            method: stack.enter_context(open_folder(out / folder_name(method), run, compute, workers, resume))
            for method, run in runs.items()
        }
        reward, held_out = load_rewards(settings, compute)
        features = load_all_features(settings, compute)
        # every run has been checked above, so a one-step model for wgnc also works with the other methods
        model = load_model(next((run for run in runs.values() if run.one_step), settings), compute)
        # a plan takes seconds, and there is no other figure to put beside it without a GPU
        if workers.is_first and torch.device(compute.device).type == "cuda":
            planned = Planned(_expected_memory(settings, compute, out, runs))
            for folder in folders.values():
                folder.write_plan(planned)
        for method, run in runs.items():
            execute(run, compute, folders[method], model, reward, held_out, workers, features)
        results = {method: folder.results() for method, folder in folders.items()}
        rows = tabulate(
            results,
            comparison.entries,
            settings.count_of_round,
            settings.score_names,
            settings.diversity,
            settings.particles,
        )
        if workers.is_first:
            _write(settings, out, rows, folders)
    return rows


def _expected_memory(
    settings: Settings, compute: ComputeOptions, out: Path, runs: Mapping[Method, Settings]
) -> int | None:
    """Return the memory in bytes of the plan, or None after an error, which is logged.

    Only the page shows it: a comparison must not end because of it, while other processes wait for this one.
    """
    try:
        return describe(settings, compute, out, runs.values()).memory
    except Exception as error:
        _LOG.warning("the memory was not planned: %s: %s", type(error).__name__, error)
        return None


def check_latents(settings: Settings, runs: Mapping[Method, Settings]) -> None:
    """Check that the methods can use the model's latents; `compare` raises the same errors.

    Raises:
        ValueError: the model has no images of that size, an operator does not take its latents, or a method
            guides no step.
        ModelError: the model does not exist.
    """
    shapes = {
        one_step: latent_shape(
            settings.model,
            one_step=one_step,
            reward_decoder=settings.reward_decoder,
            **settings.model_options,
        )
        for one_step in {method.one_step for method in runs}
    }
    for method, run in runs.items():
        method.check_shape(shapes[method.one_step])
        guided_steps(run)


def check_folders(runs: Mapping[Method, Settings], out: Path, resume: bool) -> None:
    """Check the folders of a comparison's runs without writing anything; `compare` raises the same errors."""
    check_unlocked(out)
    check_link(out)
    for name in _COMPARISON_FILES if not resume else ():
        if (out / name).exists():
            raise RunFolderError(
                f"{out} already has a {name}; continue it with --resume, or choose another folder"
            )
    for method, run in runs.items():
        check_folder(out / folder_name(method), run.to_json(), resume)


def _write(settings: Settings, out: Path, rows: list[Row], folders: Mapping[Method, RunFolder]) -> None:
    """Write the plots, the contact sheet, the table, which shows that all is there, and last the page."""
    write_whole(out / "comparison.json", json.dumps([row.to_json() for row in rows], indent=2).encode())
    plots = draw_comparison(
        rows,
        [reward.name for reward in settings.held_out],
        " + ".join(reward.name for reward in settings.rewards),
    )
    write_whole(out / "comparison.png", figure_png(plots))
    write_whole(out / "contact-sheet.png", png(_contact_sheet(settings, folders)))
    write_whole(out / "table.md", f"{markdown(rows)}\n".encode())
    write_page(out)


def check(settings: Settings, comparison: Comparison, compute: ComputeOptions) -> dict[Method, Settings]:
    """Check the arguments of `compare`, which raises the same errors, before anything is loaded.

    Returns:
        The run of each method.
    """
    entries = comparison.entries
    runs = runs_of(settings, entries)
    # methods are equal if all their arguments are
    if len({run.method for run in runs.values()}) < len(runs) or len(set(entries)) < len(entries):
        raise ValueError(f"compare: methods must differ, got {', '.join(comparison.methods)}")
    for method, run in runs.items():
        method.check()
        check_settings(run, compute)
    return runs


def warnings_of(settings: Settings, rows: Sequence[Row], out: Path) -> list[str]:
    """Return a sentence for each method that has probably destroyed its images.

    That is a method with a high peak in the spectrum of its noise (see `sampling.typicality`), or one whose
    held-out score is below that of the method `base`, if their 95 % intervals do not overlap.
    """
    sentences = []
    fewest = {row.method: row for row in sorted(rows, key=lambda row: -row.best_of)}
    single = [row for row in rows if row is fewest[row.method]]
    base = next((row for row in single if row.method.name == "base"), None)
    for row in single:
        summary = json.loads((out / folder_name(row.method) / "summary.json").read_text())
        sentences += summary["warnings"]
        for judge in settings.held_out:
            if base is None:
                break
            before, after = base.scores[judge.name], row.scores[judge.name]
            if after.mean + after.half_width < before.mean - before.half_width:
                sentences.append(
                    f"{row.method} lowers the held-out {judge.name} from {before} to {after}; try weaker "
                    "guidance"
                )
    return sentences


def _contact_sheet(settings: Settings, folders: Mapping[Method, RunFolder]) -> Image.Image:
    """Return a sheet with a row for each method: the first particle of up to ten prompts, with its reward."""
    particles = [index * settings.particles for index in range(len(settings.prompts))][:10]
    return contact_sheet(
        [[folder.image_file(particle) for particle in particles] for folder in folders.values()],
        list(map(str, folders)),
        [
            [f"{folder.outcomes[particle].reward:#.4g}" for particle in particles]
            for folder in folders.values()
        ],
        cell=(480, 64) if next(iter(folders.values())).has_videos else (96, 96),
        column_titles=settings.prompts[: len(particles)],
    )
