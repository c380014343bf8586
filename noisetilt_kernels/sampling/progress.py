"""The progress bar."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Bar(Protocol):
    """Part of the interface of a tqdm bar that is used here."""

    def update(self, n: float) -> object:
        """Advance by n steps."""


class _NoBar:
    def update(self, n: float) -> None:
        pass


def progress_bar(show: bool, description: str, total: int) -> AbstractContextManager[Bar]:
    """Return a progress bar for `total` steps. It prints nothing unless `show` is True.

    Raises:
        ImportError: the bar is to be shown, and tqdm is not installed.
    """
    if not show:
        return nullcontext(_NoBar())
    try:
        from tqdm import tqdm  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise ImportError("SamplerOptions(progress=True) needs tqdm: pip install tqdm") from error
    return tqdm(desc=description, total=total, unit="step")  # type: ignore[no-any-return]
