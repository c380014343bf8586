"""Expected errors as one sentence and an exit code."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from ..checks import NoisetiltError
from ..runs.workers import is_reporting_process
from ..sampling import NonFiniteError

INTERRUPTED = 130
"""Exit code after Ctrl-C, the same as in shells."""

HOW_TO_RESUME = "run the same command with --resume to continue"


@contextmanager
def explained() -> Iterator[None]:
    """Print an expected error of the package as one sentence and exit; likewise on Ctrl-C.

    Any other exception is a bug and keeps its traceback.
    """
    try:
        with on_interrupt(lambda: "run the same command again"):
            yield
    except NonFiniteError as error:
        way_out = "--non-finite plain_noise, with --resume, leaves such steps unguided"
        raise click.ClickException(f"{error.what}; {way_out}") from error
    except (NoisetiltError, ValueError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        # the operating system's error names a file; transformers and the hub raise whole sentences
        message = (
            f"{error.filename}: {error.strerror}"
            if error.filename is not None
            else error.strerror or str(error)
        )
        raise click.ClickException(message) from error


@contextmanager
def on_interrupt(describe_state: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C print the state and exit; of several processes only one prints."""
    try:
        yield
    except KeyboardInterrupt:
        if is_reporting_process():
            click.echo(f"\nstopped: {describe_state()}", err=True)
        sys.exit(INTERRUPTED)
