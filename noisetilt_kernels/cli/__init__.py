"""Work of the `noisetilt` command: a module per subcommand. The package `noisetilt_cli` has the options."""

from noisetilt_cli import main

__all__ = ["main"]
