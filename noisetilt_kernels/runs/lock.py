"""Lock of a folder: one run writes to it at a time.

The lock is the file `.lock`, which names the process and its host. The operating system holds it for an open
file, so it ends with its process, however that ends. Where other hosts do not see such locks, the name of the
host in the file keeps them out.
"""

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..checks import json_fields
from .errors import RunFolderError

LOCK = ".lock"
"""Name of the file."""


class _Owner(NamedTuple):
    host: str
    process: int


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an existing folder within the block. The lock of an ended process is taken over.

    Raises:
        RunFolderError: another process holds the lock.
        OSError: the folder cannot be written to.
    """
    path = folder / LOCK
    handle = _take(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is released: later it may be the file of another process
        os.close(handle)


def check_unlocked(folder: Path) -> None:
    """Raise RunFolderError if a process holds the lock of a folder, which need not exist."""
    try:
        try:
            handle = os.open(folder / LOCK, os.O_RDWR)  # NFS locks no file that is open for reading only
        except PermissionError:
            handle = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:  # no lock, or no folder, which is an error of its own
        return
    try:
        _hold(handle, folder / LOCK)
    finally:
        os.close(handle)


def has_owner(folder: Path) -> bool:
    """Return True if a process that is alive, or is on another host, has locked a folder.

    Unlike `check_unlocked` this never holds the lock, not even for a moment, so no run is refused because of
    it.
    """
    try:
        owner = _owner((folder / LOCK).read_bytes())
    except OSError:
        return False
    return owner is not None and (owner.host != platform.node() or _is_alive(owner.process))


def _take(path: Path) -> int:
    """Return the open file of the lock, which is held and names this process."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _hold(handle, path)
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps(_Owner(platform.node(), os.getpid())._asdict()).encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its owner removed it after it was opened here


def _hold(handle: int, path: Path) -> None:
    """Hold the open file of a lock.

    Raises:
        RunFolderError: another process holds it, or its owner is on another host.
    """
    held_elsewhere: bool | None = False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held_elsewhere = True
    except OSError:  # a file system without locks
        held_elsewhere = None
    owner = _owner(os.pread(handle, 4096, 0))
    if owner is not None and owner.host != platform.node():
        raise RunFolderError(
            f"{path.parent} is in use by process {owner.process} on {owner.host}; choose another folder, "
            f"or delete {path} if that process has ended"
        )
    if held_elsewhere is None:
        held_elsewhere = owner is not None and _is_alive(owner.process)
    if held_elsewhere:
        name = "another process" if owner is None else f"process {owner.process}"
        raise RunFolderError(f"{path.parent} is in use by {name}; wait for its end, or choose another folder")


def _owner(content: bytes) -> _Owner | None:
    """Return the owner in the file of a lock, or None if it was not written completely."""
    try:
        return _Owner(**json_fields(content, {"host": (str,), "process": (int,)}))
    except ValueError:
        return None


def _is_alive(process: int) -> bool:
    """Return True if a process of this host exists."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # a process of another user
        pass
    return True
