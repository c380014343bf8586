"""Work of `noisetilt view`: pages of runs in a browser."""

import webbrowser
from pathlib import Path

import click

from ..pages.packages import HOW_TO_INSTALL, missing_package
from .errors import explained


def run(folder: Path, port: int, open_browser: bool) -> None:
    """Serve the pages of the runs in a folder until Ctrl-C.

    Arguments: values of the options.
    """
    if (missing := missing_package()) is not None:
        raise click.ClickException(f"view needs {missing}: {HOW_TO_INSTALL}")
    from ..pages.server import Server

    with explained():
        try:
            server = Server(folder, port)
        except OSError as error:
            raise click.ClickException(
                f"--port {port} cannot be used ({error.strerror}); choose another port, or 0 for a free one"
            ) from error
        with server:
            click.echo(f"runs in {folder.resolve()}: {server.address}  (Ctrl-C ends the server)")
            if open_browser:
                webbrowser.open(server.address)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                click.echo("")
