"""What can go wrong with a model that a person can do something about."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)


class ModelError(ValueError):
    """A model cannot be loaded or used. The message is one sentence for whoever named the model, with the way out."""


@contextmanager
def one_sentence(source: str) -> Iterator[None]:
    """Turns whatever is raised in the block into a ModelError; one that is stays as it is."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{_explain(source, error)}") from None


def _explain(source: str, error: BaseException) -> str:
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None:
        chain.append(following)
        following = following.__cause__ or following.__context__

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in chain)

    if is_any(GatedRepoError):
        return f"{source!r} wants its licence accepted on its page of the hub, and `hf auth login` after it"
    if is_any(RepositoryNotFoundError):
        return (
            f"{source!r} is neither a folder here nor a model of the hub; if it is private there, `hf auth login` first"
        )
    if is_any(LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError):
        return f"{source!r} is not a folder here and the hub cannot be reached; check the network, or give a folder"
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    if first.endswith(":") and others:  # torch's errors of weights list what is wrong below
        first += f" {others[0].strip()}"
    first = re.split(r"\.(?: (?=[A-Z])|$)", first)[0]  # of several sentences
    return f"{source!r} cannot be loaded: {first}; if it is incomplete, download or save it anew"
