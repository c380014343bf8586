"""Loads the compiled library; without one, defines the operators from the same schemas."""

import re
import warnings
from pathlib import Path

import torch

_DIRECTORY = Path(__file__).parent

HOW_TO_BUILD = (
    "install a C++17 compiler and run, in the sources, `pip install --no-build-isolation --force-reinstall --no-deps .`"
)

failure: str | None = None
"""Why the compiled library is not in use; None if it is."""

_fallback: torch.library.Library | None = None  # keeps the definitions alive


def _load() -> None:
    global failure, _fallback
    try:
        library = next(_DIRECTORY.glob("_C*.so"), None)
        if library is None:
            raise OSError("no compiled library is installed (was there a C++ compiler at installation?)")
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        failure = str(error)
        _fallback = torch.library.Library("noisetilt", "DEF")
        for schema in re.findall(r'^SCHEMA\("(.*)"\)$', (_DIRECTORY / "schemas.def").read_text(), re.MULTILINE):
            _fallback.define(schema.replace('\\"', '"'))
        warnings.warn(
            f"noisetilt_kernels runs on its slow pure-PyTorch reference: {failure}. To build the kernels, "
            f"{HOW_TO_BUILD}; `noisetilt doctor` tells more.",
            stacklevel=5,  # the line that imports the package
        )


def build_info() -> dict[str, str]:
    """How the compiled library was built (compiler, flags, variants, torch_target) and the CPU `variant` that runs.

    Empty where the library is not in use.
    """
    if failure is not None:
        return {}
    return dict(line.split(": ", 1) for line in torch.ops.noisetilt._build_info().splitlines())


_load()
