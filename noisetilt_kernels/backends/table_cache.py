"""Confidence tables on disk, in the user's cache directory.

Nothing here is needed to compute: without safetensors, which a machine with little more than torch may lack,
or without a home directory, tables are kept in memory only.

A file is used only if it is what `write` wrote: its key, shapes, dtype and checksum are compared. Any other
file is made again. The files that were not used for the longest time are removed when the cache is full.
"""

import hashlib
import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

try:
    import safetensors.torch
except ModuleNotFoundError:
    safetensors = None  # type: ignore[assignment]

MOST_BYTES = 256_000_000
"""Largest size of all files together, in bytes."""

_FORMAT = "noisetilt table 2"  # part of every key: change it when the content of the files changes
_ABANDONED = 3600  # age in seconds at which a temporary file belongs to a process that was killed
_LOG = logging.getLogger(__name__)


class Columns(NamedTuple):
    """Table as it is kept: lower and upper bounds (D, M), contiguous, and `Table.monotone`."""

    lower: Tensor
    upper: Tensor
    monotone: bool


def directory() -> Path | None:
    """Directory of the cache: below XDG_CACHE_HOME, or below ~/.cache if the variable is no absolute path.

    None without safetensors or a home directory. Tables are then kept in memory only.
    """
    place = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(place):
        place = os.path.expanduser("~/.cache")  # begins with "~" if there is no home directory
    return Path(place, "noisetilt_kernels") if safetensors and os.path.isabs(place) else None


def files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """Return the tables in `folder`, the last used first, with their size and time of use."""
    found = [(path, status) for path in folder.glob("*.safetensors") if (status := _status(path)) is not None]
    return sorted(found, key=lambda file: file[1].st_mtime, reverse=True)


def read(key: str, shape: tuple[int, int], dtype: torch.dtype) -> Columns | None:
    """Return the columns with this key, or None if there are none. A damaged file counts as none.

    Args:
        key: text that determines the table.
        shape: shape (D, M) of the columns.
        dtype: their dtype.
    """
    folder = directory()
    if folder is None:
        return None
    path = _path(folder, key)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("it is not a regular file")
        columns = _load(path, key, shape, dtype)
    except FileNotFoundError:
        return None
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        _LOG.warning("making the cached table %s again: %s", path, error)
        return None
    try:
        os.utime(path)  # the time of its last use, for `_shrink`
    except OSError as error:
        _LOG.info("cannot note the use of %s: %s", path, error)
    return columns


def write(key: str, columns: Columns) -> None:
    """Keep the columns. The file is whole: a temporary file is renamed. A failure is logged and ignored."""
    folder = directory()
    if folder is None or columns.lower.nbytes + columns.upper.nbytes > MOST_BYTES:
        return
    temporary = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
        os.close(handle)
        metadata = {"key": key, "monotone": str(columns.monotone), "checksum": _checksum(key, columns)}
        safetensors.torch.save_file(
            {"lower": columns.lower, "upper": columns.upper}, temporary, metadata=metadata
        )
        os.replace(temporary, _path(folder, key))
        _shrink(folder)
    except (OSError, safetensors.SafetensorError) as error:
        _LOG.info("cannot cache a table in %s: %s", folder, error)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _path(folder: Path, key: str) -> Path:
    return folder / f"{_FORMAT}, {key}.safetensors".replace(" ", "_").replace("/", "_")


def _load(path: Path, key: str, shape: tuple[int, int], dtype: torch.dtype) -> Columns:
    """Read a file. Raise ValueError if it was written for another key or has changed since."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("key") != key:
            raise ValueError(f"its key is {metadata.get('key')!r}, not {key!r}")
        # clones, because the file is mapped: later changes of the file would change the tensors
        lower, upper = file.get_tensor("lower").clone(), file.get_tensor("upper").clone()
    if any(bound.shape != shape or bound.dtype != dtype for bound in (lower, upper)):
        raise ValueError(f"its bounds are not {shape} of {dtype}")
    columns = Columns(lower, upper, metadata["monotone"] == "True")
    if _checksum(key, columns) != metadata["checksum"]:
        raise ValueError("its checksum is wrong")
    return columns


def _checksum(key: str, columns: Columns) -> str:
    digest = hashlib.blake2b(f"{key}, {columns.monotone}".encode(), digest_size=16)
    for bound in columns[:2]:
        digest.update(bound.numpy().data)
    return digest.hexdigest()


def _shrink(folder: Path) -> None:
    """Remove the files that were not used for the longest time until the rest fits into MOST_BYTES.

    Temporary files of killed processes are removed too.
    """
    for path in _superfluous(folder):
        path.unlink(missing_ok=True)


def _superfluous(folder: Path) -> Iterator[Path]:
    size = 0
    for path, status in files(folder):
        size += status.st_size
        if size > MOST_BYTES:
            yield path
    for path in folder.glob("*.tmp"):
        found = _status(path)
        if found is not None and time.time() - found.st_mtime > _ABANDONED:
            yield path


def _status(path: Path) -> os.stat_result | None:
    """Return size and times of a regular file, or None if `path` is none or was just removed."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None
