"""Files of a comparison's folder that are needed to continue it."""

import json
from pathlib import Path
from typing import NamedTuple

from ..checks import json_fields
from ..sampling.methods import Method
from .entry import Entry, parse_entries
from .errors import RunFolderError
from .files import write_whole

_FILE = "methods.json"


class Comparison(NamedTuple):
    """Methods and rows of a comparison."""

    methods: tuple[str, ...]
    """Methods in order, in the syntax of `parse_entries`."""
    best_of: tuple[int, ...] = (1,)
    """Numbers n of the rows with the best of n, for methods that name none."""

    @property
    def entries(self) -> list[Entry]:
        """Entries of all methods. Raises ValueError for a method that is not valid."""
        return [entry for text in self.methods for entry in parse_entries(text, self.best_of)]


def folder_name(method: Method) -> str:
    """Return the name of the subfolder for a method's run."""
    return str(method).replace(":", "-").replace(",", "-").replace("=", "")


def write_comparison(out: Path, comparison: Comparison) -> None:
    """Write methods.json to an existing folder, from which `read_comparison` reads the comparison."""
    write_whole(out / _FILE, json.dumps(comparison._asdict(), indent=2).encode() + b"\n")


def read_comparison(out: Path) -> Comparison | None:
    """Return the comparison that was begun in a folder, or None if there is none.

    Raises:
        RunFolderError: methods.json has another content.
    """
    if not (out / _FILE).exists():
        return None
    try:
        values = json_fields((out / _FILE).read_bytes(), {"methods": (list,), "best_of": (list,)})
        return Comparison(tuple(map(str, values["methods"])), tuple(map(int, values["best_of"])))
    except (ValueError, TypeError):
        raise RunFolderError(f"{out / _FILE} was not written by a comparison; delete it") from None
