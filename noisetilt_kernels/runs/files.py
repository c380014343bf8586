"""Files that are written completely or not at all."""

import os
import re
from contextlib import suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def check_destination(path: Path) -> None:
    """Raise OSError if a file cannot be created at `path`. Call this before the work for that file."""
    if path.is_dir():
        raise IsADirectoryError("it is a directory")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no directory {path.parent}")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file completely or not at all, also if the machine loses its power.

    A temporary file beside it is written to the disk and then renamed.

    Raises:
        OSError: the file cannot be written; no temporary file is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        _wait_for_disk(temporary)
        temporary.replace(path)
        with suppress(OSError):  # some file systems refuse this for folders
            _wait_for_disk(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # the error of a full disk has no file name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file and wait until it is on the disk.

    Raises:
        OSError: the line cannot be written; a part of it may be in the file, without a newline.
    """
    # buffered: an unbuffered write may write a part only, without an error
    with path.open("ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def is_temporary(path: Path) -> bool:
    """Return True for a file that `write_whole` leaves behind when its process is killed."""
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_temporary(folder: Path) -> None:
    """Remove the files that killed processes left behind in a folder, which need not exist."""
    for path in folder.glob(".*.tmp"):
        if is_temporary(path):
            path.unlink(missing_ok=True)


def _wait_for_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
