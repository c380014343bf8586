"""Expected errors as one sentence and an exit code."""

import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import click
from click.core import ParameterSource

from ..backends import check_forced
from ..checks import NoisetiltError
from ..runs.workers import is_reporting_process
from ..sampling import NonFiniteError

HOW_TO_RESUME = "run the same command with --resume to continue"


@contextmanager
def explained() -> Iterator[None]:
    """Print an expected error of the package as one sentence and exit; likewise on Ctrl-C.

    Any other exception is a bug and keeps its traceback.
    """
    try:
        check_forced()
        with on_interrupt(lambda: "run the same command again"):
            yield
    except NonFiniteError as error:
        way_out = "--non-finite plain_noise, with --resume, leaves such steps unguided"
        raise click.ClickException(f"{error.what}; {way_out}") from error
    except (NoisetiltError, ValueError, ImportError) as error:
        raise click.ClickException(_with_option(str(error))) from error
    except OSError as error:
        # the operating system's error names a file; transformers and the hub raise whole sentences
        message = (
            f"{error.filename}: {error.strerror}"
            if error.filename is not None
            else error.strerror or str(error)
        )
        raise click.ClickException(message) from error


@contextmanager
def of_option(option: str) -> Iterator[None]:
    """Print an expected error of the block as one sentence that begins with the option, and exit."""
    try:
        yield
    except (NoisetiltError, ValueError) as error:
        raise click.ClickException(f"{option}: {_FUNCTION.sub('', str(error))}") from error


_FUNCTION = re.compile(r"^[A-Za-z_][\w.]*: ")
"""Beginning of an error of the package: the name of the function that refuses its arguments."""


def _with_option(message: str) -> str:
    """Name the option of the running command in place of the function's argument, if it has such an option.

    "ntrk: rho must be in [0, 1], got 1.5" becomes "--rho must be in [0, 1], got 1.5".
    """
    context = click.get_current_context(silent=True)
    argument = re.match(r"\w+: (\w+)(?= must )", message)
    if context is None or argument is None:
        return message
    for parameter in context.command.params:
        if parameter.name == argument[1]:
            by_option = is_given(argument[1]) or "method_text" not in context.params
            option = parameter.opts[0] if by_option else f"--method: {argument[1]}"
            return option + message[argument.end() :]
    return message


def is_given(name: str) -> bool:
    """Return True if an option of the running command was given, by the name of its parameter."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, ParameterSource.DEFAULT)


def print_warnings(sentences: Iterable[str]) -> None:
    """Print warnings to standard error; of several processes only one prints."""
    if is_reporting_process():
        for sentence in sentences:
            click.echo(f"warning: {sentence}", err=True)


@contextmanager
def on_interrupt(describe_state: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C print the state and exit; of several processes only one prints."""
    try:
        yield
    except KeyboardInterrupt:
        if is_reporting_process():
            click.echo(f"\nstopped: {describe_state()}", err=True)
        sys.exit(128 + signal.SIGINT)  # as in shells
