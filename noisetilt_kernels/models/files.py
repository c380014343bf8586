"""JSON files of pipelines and networks, read from a folder or from the hub."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from .. import hub


class Location(NamedTuple):
    """Folder or hub repository that holds a pipeline or a network."""

    name: str
    """Path of the folder, or id on the hub."""
    local: bool
    """True for a folder, which is read without the network."""

    @property
    def local_files_only(self) -> bool:
        """True if only files on this machine can be read: of a folder, or downloaded before."""
        return self.local or hub.offline()


def read_json(location: Location, file: str) -> dict[str, Any]:
    """Return the content of a JSON file, such as "model_index.json" or "vae/config.json".

    A file on the hub is downloaded once.

    Raises:
        FileNotFoundError: the folder has no such file.
        ValueError: the file is not valid JSON.
        huggingface_hub.errors.EntryNotFoundError: the repository has no such file.
        OSError: the hub cannot be reached, or refuses.
    """
    path = Path(location.name, file) if location.local else hub.download(location.name, file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {file}")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a valid JSON file") from error
    return content
