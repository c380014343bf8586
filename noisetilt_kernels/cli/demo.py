"""`noisetilt demo`: operators on a photograph and on noise, then samplers on a small model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ..runs.files import check_destination, write_whole
from .errors import explained, on_interrupt


def run(out: Path, seed: int) -> None:
    """Write the pictures of the demo and print its tables.

    Args:
        out: picture of the operators; the names of the others begin with its stem.
        seed: seed of the Gaussian noise and of the samplers.
    """
    try:
        from . import demo_operators, demo_sampling
    except ImportError as error:
        raise click.ClickException(
            f'the demo needs a package that is not installed ({error}): pip install "noisetilt-kernels[demo]"'
        ) from error

    with explained(), on_interrupt(lambda: "only finished pictures are kept; run the demo again"):
        with _write_errors_explained(out):
            check_destination(out)
        comparison = demo_operators.compare(seed)
        click.echo(demo_operators.table(comparison))
        with _write_errors_explained(out):
            write_whole(out, demo_operators.png(demo_operators.draw(comparison)))
        click.echo(f"\npicture: {out.resolve()}\n")
        text, pictures = demo_sampling.run(seed, out)
    click.echo(f"{text}\n\npictures: {', '.join(str(path.resolve()) for path in pictures)}")


@contextmanager
def _write_errors_explained(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` into a one-sentence error."""
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror or error}") from error
