"""Form of hub ids, and explanations of failed downloads."""

import pytest

from noisetilt_kernels.hub import explain_failure, first_sentence, is_hub_id

errors = pytest.importorskip("huggingface_hub.errors")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("black-forest-labs/FLUX.1-dev", True),
        ("owner/name_1", True),
        ("name", False),
        ("/folder/name", False),
        ("./name", False),
        ("owner/name/file", False),
        ("owner/a name", False),
        ("", False),
    ],
)
def test_hub_ids(source: str, expected: bool) -> None:
    assert is_hub_id(source) is expected


def without_response(kind: type[BaseException]) -> BaseException:
    """Return an error of the hub, which is otherwise made from a response of the server."""
    return kind.__new__(kind, "message")


def test_explanations() -> None:
    assert "'a/b' is gated: accept its licence" in explain_failure(
        "a/b", without_response(errors.GatedRepoError)
    )
    missing = explain_failure("a/b", without_response(errors.RepositoryNotFoundError))
    assert missing.startswith("'a/b' is neither a folder nor a repository on the hub")
    for error in (errors.LocalEntryNotFoundError("x"), errors.OfflineModeIsEnabled("x"), ConnectionError()):
        assert "`hf download a/b --local-dir FOLDER`" in explain_failure("a/b", error)
        assert "`hf download a/b c.pt --local-dir FOLDER`" in explain_failure("a/b", error, "c.pt")
    assert explain_failure("a/b", ValueError("No such key. More.")) == (
        "'a/b' cannot be loaded: No such key; if it is incomplete, download or save it again"
    )


def test_causes_are_examined() -> None:
    try:
        try:
            raise errors.OfflineModeIsEnabled("offline")
        except errors.OfflineModeIsEnabled as error:
            raise OSError("cannot load") from error
    except OSError as error:
        assert "the hub cannot be reached" in explain_failure("a/b", error)


@pytest.mark.parametrize(
    ("message", "first"),
    [
        ("One. Two.", "One"),
        ("a.b is wrong.", "a.b is wrong"),
        ("Faults:\n  one\n  two", "Faults: one"),
        ("", "ValueError"),
    ],
)
def test_first_sentence(message: str, first: str) -> None:
    assert first_sentence(ValueError(message)) == first
