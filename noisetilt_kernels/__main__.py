"""`python -m noisetilt_kernels` is the `noisetilt` command."""

from .cli import main

if __name__ == "__main__":
    main()
