"""Entry point of `python -m noisetilt_cli`, the same as the `noisetilt` command."""

from . import main

if __name__ == "__main__":
    main(prog_name="noisetilt")
