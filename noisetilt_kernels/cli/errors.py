"""Failures that a person can do something about, as one sentence and an exit code."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from ..rewards import RewardError
from ..runs.errors import OutOfMemoryError, RunFolderError
from ..sampling import NonFiniteError

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C stopped, as shells have it."""


@contextmanager
def explained() -> Iterator[None]:
    """Turns the errors that the package raises on purpose into one sentence; others are bugs, and keep their trace."""
    try:
        yield
    except (ValueError, RewardError, RunFolderError, OutOfMemoryError, NonFiniteError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        # a file's, or one that is a whole sentence
        message = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
        raise click.ClickException(message) from error


@contextmanager
def stopped(state: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C tells what there is and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"\nstopped: {state()}; the same command with --resume goes on", err=True)
        sys.exit(INTERRUPTED)
