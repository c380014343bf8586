"""The progress bar."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Bar(Protocol):
    """What is used of a tqdm bar."""

    def update(self, n: float) -> object:
        """Go on by n."""


class _NoBar:
    def update(self, n: float) -> None:
        pass


def progress_bar(shown: bool, description: str, total: int) -> AbstractContextManager[Bar]:
    """A bar of `total` steps, all particles together; one that shows nothing unless `shown`.

    Raises:
        ImportError: it is to be shown, and tqdm is not there.
    """
    if not shown:
        return nullcontext(_NoBar())
    try:
        from tqdm import tqdm  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise ImportError("SamplerOptions(progress=True) needs tqdm: pip install tqdm") from error
    return tqdm(desc=description, total=total, unit="step")  # type: ignore[no-any-return]
