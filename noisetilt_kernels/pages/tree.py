"""Runs within a folder, and the state of their files."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ..runs.errors import RunFolderError
from ..runs.folder import count_finished, read_run
from ..runs.lock import LOCK, has_owner
from .content import Kind, kind_of

_DEPTH = 6
"""Depth to which folders are searched."""

_INSIDE = {"images", "latents", "videos", "prompts"}
"""Subfolders of a run or a comparison that have no runs."""

_STATE = ("run.json", "methods.json", "report.json", "plan.json", "summary.json", "table.md", LOCK)
"""Files that a page depends on, beside the lines of steps and images."""


_READ = {".json", ".jsonl", ".safetensors"}
"""Endings of the files that are read to make a page, apart from images."""


class ListEntry(NamedTuple):
    """Folder in the list of runs."""

    name: str
    address: str
    """Address of its page from that of the list."""
    kind: Kind
    depth: int
    """Number of folders of the list that it is in."""
    running: bool
    description: str


def find(root: Path) -> Iterator[tuple[Path, Kind]]:
    """Yield the folders of runs, comparisons and experiments in a folder, each before those inside of it.

    Hidden folders and symbolic links are left out, and folders more than six levels deep.
    """
    yield from _find(root, _DEPTH)


def _find(folder: Path, depth: int) -> Iterator[tuple[Path, Kind]]:
    kind = kind_of(folder)
    if kind is not None:
        yield folder, kind
    if kind == "run" or depth == 0:
        return
    try:
        inside = sorted(
            entry.name
            for entry in os.scandir(folder)
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        )
    except OSError:  # no permission, or it was deleted
        return
    for name in inside:
        if kind is None or name not in _INSIDE:
            yield from _find(folder / name, depth - 1)


def entries(root: Path) -> list[ListEntry]:
    """Return the list of the runs in a folder, the folder itself included.

    Runs of a comparison are left out: the page of the comparison links to them.
    """
    found = dict(find(root))
    listed = [
        folder for folder, kind in found.items() if kind != "run" or found.get(folder.parent) != "comparison"
    ]
    result = []
    for folder in listed:
        kind = found[folder]
        above = [parent for parent in folder.parents if parent in found]
        inner = [
            one for one, its_kind in found.items() if its_kind == "run" and folder in (one, *one.parents)
        ]
        relative = folder.relative_to(above[0] if above else root).as_posix()
        address = quote(folder.relative_to(root).as_posix())
        result.append(
            ListEntry(
                folder.name if relative == "." else relative,
                "index.html" if address == "." else f"{address}/index.html",
                kind,
                len(above),
                any(map(has_owner, inner)),
                _describe(inner, root),
            )
        )
    return result


def _describe(runs: list[Path], root: Path) -> str:
    """Return text on the runs of an entry: number of images, model, prompts."""
    finished, total = 0, 0
    models: dict[str, None] = {}  # in order
    prompts: dict[str, None] = {}
    for folder in runs:
        try:
            check_links(folder, root)
            settings, _ = read_run(folder / "run.json")
            finished += count_finished(folder)
            total += len(settings["prompts"]) * settings["particles"] * settings.get("rounds", 1)
            models[str(settings["model"])] = None
            prompts.update(dict.fromkeys(map(str, settings["prompts"])))
        except (RunFolderError, OSError, KeyError, TypeError) as error:
            return f"cannot be read: {error}"
    if not runs:
        return "no run has begun"
    few = "; ".join(list(prompts)[:3])
    more = f" and {len(prompts) - 3} more" if len(prompts) > 3 else ""
    return f"{finished:,} of {total:,} images; {', '.join(models)}; {few}{more}"


def check_links(folder: Path, root: Path) -> None:
    """Check that a page of a folder reads no file outside of `root`, apart from images.

    Raises:
        RunFolderError: a file of a run, or a folder with a run, is a symbolic link out of `root`.
    """
    for one, _ in find(folder):
        for entry in os.scandir(one):
            path = Path(entry.path)
            if (
                entry.is_symlink()
                and (path.suffix in _READ or kind_of(path) is not None)
                and not path.resolve().is_relative_to(root)
            ):
                raise RunFolderError(f"{path} is a symbolic link out of {root}, which is served")


def stamp(folder: Path) -> str:
    """Return text that changes when the files of runs in a folder change, which may be a run itself.

    It also changes when the process of a run ends.
    """
    state = hashlib.sha256()
    for one, _ in find(folder):
        lines = (path for name in ("results", "records") for path in one.glob(f"{name}*.jsonl"))
        for path in sorted((*lines, *(one / name for name in _STATE))):
            try:
                status = path.stat()
            except OSError:
                continue
            state.update(f"{path.relative_to(folder)} {status.st_mtime_ns} {status.st_size}\n".encode())
        state.update(
            b"owner\n" if has_owner(one) else b""
        )  # a run that is killed leaves the file of its lock
    return state.hexdigest()[:32]
