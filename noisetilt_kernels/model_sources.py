"""Names of models: the bundled ones, folders and hub ids. Importing this module does not import diffusers."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from . import hub
from .checks import NoisetiltError, did_you_mean

INDEX = "model_index.json"
"""File that marks the folder of a pipeline in diffusers' layout."""

_WORD = "\N{LOWER ONE EIGHTH BLOCK}"
"""Mark of a whole word in the vocabulary of the second tokenizer."""

ASSETS = Path(__file__).parent / "assets"
"""Folder of the bundled models."""


class ModelError(NoisetiltError, ValueError):
    """A model cannot be loaded or used. The message is one sentence: what is wrong, and what to do."""


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


@dataclass(frozen=True)
class BundledModel:
    """A model that comes with the package.

    Attributes:
        path: folder of the model.
        one_step: True for a model of one step, False for a flow.
        description: one line.
        defaults: defaults of sampler arguments that suit this model better than the samplers' own.
    """

    path: Path
    one_step: bool
    description: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


BUNDLED: Mapping[str, BundledModel] = {
    # docs/rho.md has the measurement: at 0.01 the digits stay readable, at 0.03 they do not
    "digits": BundledModel(
        ASSETS / "digits", one_step=False, description="handwritten digits, 32 x 32", defaults={"rho": 0.01}
    ),
    "digits-turbo": BundledModel(
        ASSETS / "digits-turbo", one_step=True, description="handwritten digits, 32 x 32, in one step"
    ),
}
"""A flow that draws handwritten digits, and its one-step student."""


def default_arguments(model: str) -> Mapping[str, Any]:
    """Return the defaults of sampler arguments that a bundled model has; empty for another model."""
    return BUNDLED[model].defaults if model in BUNDLED else {}


def locate(source: str) -> Location:
    """Return the folder or hub repository of a pipeline. The hub is not contacted.

    Raises:
        ModelError: `source` is neither a bundled model, the folder of a pipeline, nor of the form of a hub
            id.
    """
    path = BUNDLED[source].path if source in BUNDLED else Path(source).expanduser()
    if path.is_dir():
        if not (path / INDEX).is_file():
            raise ModelError(
                f"the folder {source!r} has no {INDEX}; a pipeline in diffusers' layout is needed, as "
                "pipe.save_pretrained(folder) makes it"
            )
        return Location(str(path), local=True)
    if path.exists():
        raise ModelError(f"{source!r} is a file; the folder of a pipeline is needed, with its {INDEX}")
    if not hub.is_hub_id(source):
        raise ModelError(
            f"there is no folder {source!r}{did_you_mean(source, BUNDLED)}; give a folder, a bundled model "
            f"({', '.join(BUNDLED)}), or an id such as 'black-forest-labs/FLUX.1-dev'"
        )
    return Location(source, local=False)


def unknown_words(model: str, prompt: str) -> list[str]:
    """Return the words of a prompt that a bundled model was not trained on; empty for another model.

    A bundled model reads such a word as single letters, which it does not understand.
    """
    if model not in BUNDLED:
        return []
    file = BUNDLED[model].path / "tokenizer_2" / "tokenizer.json"
    pieces = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    known = {piece.removeprefix(_WORD) for piece, _ in pieces if piece.startswith(_WORD)}
    return [word for word in dict.fromkeys(re.findall(r"\w+", prompt.lower())) if word not in known]
