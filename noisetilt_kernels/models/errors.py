"""What can go wrong with a model that a person can do something about."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..checks import NoisetiltError
from ..hub import explain_failure


class ModelError(NoisetiltError, ValueError):
    """A model cannot be loaded or used. The message is one sentence for whoever named the model, with the way out."""


@contextmanager
def one_sentence(source: str) -> Iterator[None]:
    """Turns whatever is raised in the block into a ModelError; one that is stays as it is."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(explain_failure(source, error)) from None
