"""Load the compiled libraries: `_C` (the operators and their CPU kernels) and `_C_cuda` (the CUDA kernels).

If `_C` cannot be loaded, the operators are defined here, from the same schemas.
"""

from pathlib import Path

import torch

from .._ops import ops
from ..checks import warn
from . import schemas

_DIRECTORY = Path(__file__).parents[1]

HOW_TO_BUILD = (
    "install a C++17 compiler and run, in the sources, "
    "`pip install --no-build-isolation --force-reinstall --no-deps .`"
)

failure: str | None = None
"""Reason why `_C` is not in use. None if it is."""

cuda_failure: str | None = None
"""Reason why `_C_cuda` is not in use. None if it is."""

_fallback: torch.library.Library | None = None  # keeps the definitions alive


def path(name: str) -> Path | None:
    """Return the file of library `_C` or `_C_cuda`, or None if it is not installed."""
    return next(_DIRECTORY.glob(f"{name}.*so"), None)


def _load() -> None:
    global failure, _fallback
    try:
        library = path("_C")
        if library is None:
            raise OSError("no compiled library is installed (was there a C++ compiler at installation?)")
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        failure = str(error.__cause__ or error)  # the cause has the message of the dynamic linker
        _fallback = schemas.define()
        warn(
            f"noisetilt_kernels runs on its slow pure-PyTorch reference: {failure}. To build the kernels, "
            f"{HOW_TO_BUILD}; `noisetilt doctor` shows what is installed."
        )


def _load_cuda() -> None:
    global cuda_failure
    library = path("_C_cuda")
    if torch.version.cuda is None:
        cuda_failure = "this torch is not built for CUDA"
    elif library is None:
        cuda_failure = (
            "no compiled CUDA library is installed "
            "(was there nvcc, and a CUDA build of torch, at installation?)"
        )
    else:
        try:
            torch.ops.load_library(library)
        except (OSError, RuntimeError) as error:
            cuda_failure = str(error.__cause__ or error)
            warn(
                f"noisetilt_kernels runs without its CUDA kernels: {cuda_failure}. "
                "`noisetilt doctor` shows what is installed."
            )


def build_info() -> dict[str, str]:
    """Return how `_C` was built (compiler, flags, variants, torch_target), and the CPU `variant` that runs.

    The result is empty if the library is not in use.
    """
    return {} if failure is not None else _parse(ops._build_info())


def cuda_build_info() -> dict[str, str]:
    """Return how `_C_cuda` was built: version of nvcc, flags, architectures. Empty if it is not in use."""
    return {} if cuda_failure is not None else _parse(ops._cuda_build_info())


def _parse(lines: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in lines.splitlines())


_load()
_load_cuda()
