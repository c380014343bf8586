"""`noisetilt view`: pages of runs in a browser."""

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the default browser.")
def view(folder: Path, port: int, open_browser: bool) -> None:
    """Show the runs in a folder as pages, including unfinished runs.

    FOLDER is the folder of a run, a comparison or an experiment, or has such folders inside. The server
    listens on 127.0.0.1 only, serves no file outside of FOLDER, and changes nothing. The pages show images
    with their rewards, curves over the steps, settings and cost, and refresh themselves when files change.
    Ctrl-C ends the server.

    \b
    Example:
      noisetilt view runs/ --open
    """
    if not folder.is_dir():
        raise click.UsageError(f"{folder} is not a folder; name one that has runs")
    from noisetilt_kernels.cli.view import run

    run(folder, port, open_browser)
