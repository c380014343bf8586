"""`noisetilt demo`: operators on a photograph and on noise, then every sampler on a small model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ..runs.files import check_destination, write_whole
from .errors import explained, on_interrupt


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("noisetilt-demo.png"),
    show_default=True,
    help="Picture to write (PNG). Two more pictures are written beside it.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Seed of the Gaussian noise and of the samplers.",
)
def demo(out: Path, seed: int) -> None:
    """Show the effect of the operators on noise and on steered images.

    The first part applies norm projection, WGNC and W to a photograph and to Gaussian noise. A good operator
    removes the structure of the photograph, keeps its direction, and leaves the noise unchanged.

    The second part draws digits with a small bundled model, steered toward more ink, with every sampler and
    every operator. An independent classifier counts how many digits are still readable. The
    demo takes about a minute.
    """
    try:
        from . import demo_operators, demo_sampling
    except ImportError as error:
        raise click.ClickException(
            f'the demo needs a package that is not installed ({error}): pip install "noisetilt-kernels[demo]"'
        ) from error

    with _write_errors_explained(out):
        check_destination(out)
    comparison = demo_operators.compare(seed)
    click.echo(demo_operators.table(comparison))
    with _write_errors_explained(out):
        write_whole(out, demo_operators.png(demo_operators.draw(comparison)))
    click.echo(f"\npicture: {out.resolve()}\n")
    with explained(), on_interrupt(lambda: "only finished pictures are kept; run the demo again"):
        text, pictures = demo_sampling.run(seed, out)
    click.echo(f"{text}\n\npictures: {', '.join(str(path.resolve()) for path in pictures)}")


@contextmanager
def _write_errors_explained(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` into a one-sentence error."""
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror or error}") from error
