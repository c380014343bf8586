"""ModelError, and the conversion of other libraries' errors to it."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..checks import NoisetiltError
from ..hub import explain_failure


class ModelError(NoisetiltError, ValueError):
    """A model cannot be loaded or used. The message is one sentence: what is wrong, and what to do."""


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
