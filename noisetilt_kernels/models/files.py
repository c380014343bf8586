"""JSON files of pipelines and networks, read from a folder or from the hub."""

import json
from pathlib import Path
from typing import Any

from .. import hub
from ..model_sources import Location


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
