"""Entry point of `python -m noisetilt_kernels`, the same as the `noisetilt` command."""

from noisetilt_cli import main

if __name__ == "__main__":
    main(prog_name="noisetilt")
