"""Failures that a person can do something about, as one sentence and an exit code."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from ..rewards import RewardError
from ..runs.errors import OtherProcessError, OutOfMemoryError, RunFolderError
from ..runs.workers import speaks
from ..sampling import NonFiniteError

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C stopped, as shells have it."""

GO_ON = "the same command with --resume goes on"


@contextmanager
def explained() -> Iterator[None]:
    """Turns the errors that the package raises on purpose into one sentence; others are bugs, and keep their trace."""
    try:
        yield
    except NonFiniteError as error:
        way_out = "--non-finite plain_noise, with --resume, leaves such steps unguided"
        raise click.ClickException(f"{error.what}; {way_out}") from error
    except (
        ValueError,
        RewardError,
        RunFolderError,
        OtherProcessError,
        OutOfMemoryError,
        ImportError,
    ) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        # a file's, or one that is a whole sentence
        message = (
            f"{error.filename}: {error.strerror}"
            if error.filename is not None
            else error.strerror or str(error)
        )
        raise click.ClickException(message) from error


@contextmanager
def stopped(state: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C tells what there is, and how to go on; of several processes one does."""
    try:
        yield
    except KeyboardInterrupt:
        if speaks():
            click.echo(f"\nstopped: {state()}", err=True)
        sys.exit(INTERRUPTED)
