"""Messages of diffusers and transformers that say nothing about a user's model."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SMALL = 2**30
"""Size in bytes of the weights of a folder that are loaded without progress bars."""


@contextmanager
def errors_only(*loggings: Any) -> Iterator[None]:
    """Hide the warnings of libraries.

    Args:
        loggings: modules `diffusers.utils.logging` and `transformers.utils.logging`, or one of them.
    """
    before = [library.get_verbosity() for library in loggings]
    for library in loggings:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, level in zip(loggings, before, strict=True):
            library.set_verbosity(level)


@contextmanager
def without_import_warnings() -> Iterator[None]:
    """Hide the warnings that libraries log while they are imported.

    They are about optional packages that are not used here, such as torchvision or kernels of torchao.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def without_bars_if_small(folder: str | Path) -> Iterator[None]:
    """Hide the progress bars of diffusers and transformers while a small folder is loaded.

    Args:
        folder: folder of a pipeline or a network. Anything else, such as a hub id, keeps its bars.
    """
    sizes = [file.stat().st_size for file in Path(folder).rglob("*.safetensors")]
    small = bool(sizes) and sum(sizes) < SMALL
    # a library that is not imported shows no bars
    libraries: list[Any] = [
        sys.modules[name]
        for name in ("diffusers.utils.logging", "transformers.utils.logging")
        if small and name in sys.modules
    ]
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
