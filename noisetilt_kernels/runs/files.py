"""Files that are written completely or not at all."""

import os
from pathlib import Path


def check_destination(path: Path) -> None:
    """Raise OSError if a file cannot be created at `path`. Call this before the work for that file."""
    if path.is_dir():
        raise IsADirectoryError("it is a directory")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no directory {path.parent}")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file completely or not at all: a temporary file beside it is renamed once it is complete.

    Raises:
        OSError: the file cannot be written; no temporary file is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # the error of a full disk has no file name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Return True for a file that `write_whole` leaves behind when its process is killed."""
    return path.name.startswith(".") and path.name.endswith(".tmp")
