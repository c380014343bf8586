"""Definition of the operators from `schemas.def`, where no compiled library defines them."""

import re
from pathlib import Path

import torch

from .._ops import ops

_FILE = Path(__file__).parents[1] / "schemas.def"


def define() -> torch.library.Library:
    """Define all operators, without implementations. They exist as long as the result does."""
    definitions = torch.library.Library(ops.name, "DEF")
    for schema in re.findall(r'^SCHEMA\("(.*)"\)$', _FILE.read_text(encoding="utf-8"), re.MULTILINE):
        definitions.define(schema.replace('\\"', '"'))
    return definitions
