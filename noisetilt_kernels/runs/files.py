"""Files that are written whole or not at all."""

import os
from pathlib import Path


def check_destination(path: Path) -> None:
    """Raises OSError if a file at `path` could not be written, before any work is done for it."""
    if path.is_dir():
        raise IsADirectoryError("it is a directory")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no directory {path.parent}")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: a temporary file beside it takes its place once it is complete.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # which a full disk does not tell
        raise
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether a file is what `write_whole` leaves behind when its process is killed."""
    return path.name.startswith(".") and path.name.endswith(".tmp")
