"""Builds with ninja, for which several test processes may ask at once."""

import fcntl
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType


def build(
    folder: Path, lines: Sequence[str], target: str, prepare: Callable[[], None] = lambda: None
) -> Path:
    """Build a target in a folder if it is out of date, and return its path.

    Args:
        folder: made if it does not exist.
        lines: content of build.ninja.
        target: one of its outputs, a file in the folder.
        prepare: writes sources, while no other process builds in this folder.

    Raises:
        RuntimeError: the build fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ninja", "-C", str(folder), target]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        prepare()
        (folder / "build.ninja").write_text("\n".join(lines) + "\n")
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"building {target} failed:\n{result.stdout}{result.stderr}")
    return folder / target


def load(path: Path) -> ModuleType:
    """Return the Python module in a library that was built."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
