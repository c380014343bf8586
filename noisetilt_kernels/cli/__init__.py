"""Work of the `noisetilt` command: a module per subcommand. The package `noisetilt_cli` has the options."""
