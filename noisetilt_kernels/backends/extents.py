"""What a backend must know of a call's arguments to tell whether it can serve it."""

from typing import NamedTuple


class Extents(NamedTuple):
    """The largest values that arguments ask for; 0 where there is no such argument."""

    sample_size: int = 0
    """Values of a sample, or coefficients of a spectrum."""
    tile_size: int = 0
    """Values of a tile whose statistics are projected."""
    block_size: int = 0
    """Coefficients of a WGNC block."""
