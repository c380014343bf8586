"""Hugging Face hub: form of ids, downloads, and reasons for failed downloads.

Models and rewards name their weights by a folder or by the id of a repository on the hub.
"""

import functools
import re
import time
from pathlib import Path

_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def is_hub_id(source: str) -> bool:
    """Return True if `source` has the form of a hub id, "owner/name". The hub is not contacted."""
    return _ID.fullmatch(source) is not None


def offline() -> bool:
    """Return True if the hub cannot be reached, so that only downloaded files can be used.

    The hub is asked at most once a minute, without the retries of a download, which take 23 seconds.
    """
    return _offline_in(int(time.monotonic() // 60))


@functools.lru_cache(maxsize=1)
def _offline_in(minute: int) -> bool:
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # its class belongs to the HTTP library, which differs between versions of the hub's
        return True
    return False


def download(source: str, file: str) -> Path:
    """Return the path of one file of a hub repository, which is downloaded once.

    Raises:
        huggingface_hub.errors.EntryNotFoundError: the repository has no such file.
        OSError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(source, file, local_files_only=offline()))


def explain_failure(source: str, error: BaseException, file: str | None = None) -> str:
    """Explain in one sentence, without a full stop, why `source` could not be loaded and what to do.

    Args:
        source: folder or hub id, as the user wrote it.
        error: exception that loading raised. Its causes are examined too.
        file: name of the file that is needed, if one file of the repository is enough.
    """
    # imported here: the package works without huggingface_hub, a dependency of transformers and diffusers
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    causes = _causes(error)

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if is_any(GatedRepoError):
        return f"{source!r} is gated: accept its licence on its page of the hub, then run `hf auth login`"
    if is_any(RepositoryNotFoundError):
        return (
            f"{source!r} is neither a folder nor a repository on the hub; if it is private, run "
            "`hf auth login` first"
        )
    if is_any(LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError):
        return (
            f"{source!r} is not a folder, and the hub cannot be reached; check the network, or run "
            f"`hf download {source}{f' {file}' if file else ''} --local-dir FOLDER` on a machine with a "
            f"network and name {f'FOLDER/{file}' if file else 'that folder'}"
        )
    reason = f"there is no {error.args[0]}" if isinstance(error, KeyError) else first_sentence(error)
    if is_any(ImportError):
        return f"{source!r} cannot be loaded, as a package is missing: {reason}"
    return f"{source!r} cannot be loaded: {reason}; if it is incomplete, download or save it again"


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of an error message, without its full stop."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    if first.endswith(":") and others:  # torch lists faulty weights on the following lines
        first += f" {others[0].strip()}"
    return re.split(r"\.(?: (?=[A-Z])|$)", first)[0]


def _causes(error: BaseException) -> list[BaseException]:
    """Return the error and all errors that led to it."""
    causes: list[BaseException] = []
    following: BaseException | None = error
    while following is not None:
        causes.append(following)
        following = following.__cause__ or following.__context__
    return causes
