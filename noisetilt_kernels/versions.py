"""Versions of this package and of its dependencies, for the doctor's report and for the record of a run."""

import platform
from importlib import metadata

import torch

from . import __version__

ABSENT = "not installed"


def versions() -> dict[str, str]:
    """Return the version of each package by name. Optional packages may be `ABSENT`."""
    others = ("numpy", "scipy", "triton", "diffusers", "transformers", "accelerate", "peft", "av")
    return {
        "noisetilt_kernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in others},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ABSENT
