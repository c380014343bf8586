"""Methods side by side, with the same prompts and seeds: their runs, a table, plots and a contact sheet."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ..models.memory import latent_shape
from ..sampling.methods import Method
from .contact_sheet import contact_sheet
from .errors import RunFolderError
from .execute import execute, open_folder
from .files import write_whole
from .folder import RunFolder, png
from .loading import check, load_model, load_rewards
from .plots import draw_comparison, figure_png
from .settings import Machine, Settings
from .table import Row, markdown, tabulate
from .workers import ALONE, Workers

_WRITTEN = ("table.md", "comparison.json", "comparison.png", "contact-sheet.png", "run.json")
"""What a comparison writes beside its runs, and what would be a run's."""


def compare(
    settings: Settings,
    methods: Sequence[Method],
    machine: Machine,
    out: Path,
    best_of: Sequence[int] = (1,),
    *,
    resume: bool = False,
    workers: Workers = ALONE,
) -> list[Row]:
    """Run every method with the same settings, each into a folder of its own below `out`, and put them side by side.

    Args:
        settings: of all runs but for the method.
        methods: differences are to the first.
        machine: how the runs are computed.
        out: folder; table.md, comparison.json, comparison.png and contact-sheet.png are written to it at the end.
        best_of: divisors of `settings.particles`, as of `tabulate`.
        resume: go on with what is in the folders.
        workers: the processes of the comparison, of which each calls this; the first one writes.

    Raises:
        ValueError: two methods are the same, as of the samplers, or the model cannot be used by one of them;
            RunFolderError: as of `RunFolder`; what loading
            a model or a reward raises.
    """
    if len(set(methods)) < len(methods):  # however they are written
        raise ValueError(f"compare: methods must differ, got {', '.join(map(str, methods))}")
    for method in methods:
        method.check()
    for n in best_of:
        if n < 1 or settings.particles % n:
            raise ValueError(
                f"compare: best_of must divide the {settings.particles} particles of a prompt, got {n}"
            )
    for name in _WRITTEN if workers.first and not resume else ():
        if (out / name).exists():
            raise RunFolderError(
                f"{out} has a {name} already; --resume goes on with it, or name another folder"
            )
    names = [folder_name(method) for method in methods]
    runs = [replace(settings, method=method) for method in methods]
    for run in runs:
        check(run, machine)
    if workers.first:
        shapes = {
            one_step: latent_shape(settings.model, one_step=one_step, **settings.model_options)
            for one_step in {run.one_step for run in runs}
        }
        for run in runs:
            run.method.check_shape(shapes[run.one_step])
    folders = [
        open_folder(out / name, run, machine, workers, resume) for name, run in zip(names, runs, strict=True)
    ]
    reward, held_out = load_rewards(settings, machine)
    # a model for wgnc, where one of the methods is that, serves the others as well: each of them has been checked
    model = load_model(next((run for run in runs if run.one_step), settings), machine)
    for run, folder in zip(runs, folders, strict=True):
        execute(run, machine, folder, model, reward, held_out, workers)
    outcomes = {
        method: [folder.outcomes[particle] for particle in sorted(folder.outcomes)]
        for method, folder in zip(methods, folders, strict=True)
    }
    rows = tabulate(outcomes, settings.particles, best_of, [*settings.shown, *settings.held_out])
    if not workers.first:
        return rows
    write_whole(out / "table.md", f"{markdown(rows)}\n".encode())
    write_whole(out / "comparison.json", json.dumps([row.to_json() for row in rows], indent=2).encode())
    plots = draw_comparison(rows, settings.held_out, " + ".join(settings.rewards))
    write_whole(out / "comparison.png", figure_png(plots))
    write_whole(out / "contact-sheet.png", png(_contact_sheet(settings, methods, folders)))
    return rows


def _contact_sheet(
    settings: Settings, methods: Sequence[Method], folders: Sequence[RunFolder]
) -> Image.Image:
    """A row for each method: of every prompt the first particle, up to ten of them, with its reward."""
    shown = [index * settings.particles for index in range(len(settings.prompts))][:10]
    return contact_sheet(
        [[folder.image_file(particle) for particle in shown] for folder in folders],
        list(map(str, methods)),
        [[f"{folder.outcomes[particle].reward:#.4g}" for particle in shown] for folder in folders],
        cell=(480, 64) if folders[0].has_videos else (96, 96),
    )


def folder_name(method: Method) -> str:
    """Of a method's run."""
    return str(method).replace(":", "-").replace(",", "-").replace("=", "")
