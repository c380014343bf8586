"""Conversion of other libraries' errors to ModelError."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..hub import explain_failure
from ..model_sources import ModelError

__all__ = ["ModelError", "as_model_error"]


@contextmanager
def as_model_error(source: str) -> Iterator[None]:
    """Turn every exception raised in the block into a ModelError that names `source`.

    A ModelError passes unchanged.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(explain_failure(source, error)) from None
