"""Tilings: a plane cut into tiles, which need not divide it (DESIGN section 3)."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor


class Region(NamedTuple):
    """Rectangle of a plane that tiles of one size fill."""

    top: int
    left: int
    height: int
    width: int
    tile: tuple[int, int]

    def fills(self, x: Tensor) -> bool:
        """Return True if the rectangle is the whole plane of samples (B, C, H, W)."""
        return (self.height, self.width) == x.shape[2:]

    def own(self) -> "Region":
        """Return the rectangle as a whole plane, which begins at (0, 0)."""
        return self._replace(top=0, left=0)

    def of(self, x: Tensor) -> Tensor:
        """Return the rectangle of samples (B, C, H, W), as a view."""
        return x[:, :, self.top : self.top + self.height, self.left : self.left + self.width]

    @property
    def tiles_per_plane(self) -> int:
        """Number of tiles in the rectangle."""
        th, tw = self.tile
        return self.height // th * (self.width // tw)


@lru_cache(maxsize=1024)
def tile_regions(plane: tuple[int, int], tile: tuple[int, int]) -> tuple[Region, ...]:
    """Regions of the tiles nearest to `tile` in a plane (H, W), row by row: one if it divides the plane.

    A side that the tile does not divide is cut into the number of pieces nearest to side / tile, ties to the
    smaller number. Their lengths differ by at most one, the longer pieces first. If the tile fits into the
    plane and has at least 2 values, all tiles have.
    """
    return _regions(_cut(plane[0], tile[0]), _cut(plane[1], tile[1]))


@lru_cache(maxsize=1024)
def mixing_regions(plane: tuple[int, int], tile: tuple[int, int]) -> tuple[Region, ...]:
    """Regions of the tiles of a mixing domain, which have an even number of values, as `tile` has.

    If the tile does not divide the plane, the width of the plane is cut into pieces of pairs; or the height,
    if the width is odd. If both are odd, the last column is in no tile; or, of a plane of one column, the
    last row.
    """
    (height, width), (th, tw) = plane, tile
    if height % th == 0 and width % tw == 0:
        return tile_regions(plane, tile)
    if width % 2 == 0 or (height % 2 == 1 and width > 1):
        return _regions(_cut(height, th), _cut_pairs(width, tw))
    return _regions(_cut_pairs(height, th), _cut(width, tw))


_Pieces = list[tuple[int, int]]
"""Lengths of pieces of a side, and how many of each follow each other."""


def _cut(side: int, piece: int) -> _Pieces:
    """Return pieces near `piece`."""
    if side % piece == 0:
        return [(piece, side // piece)]
    count = max(1, (2 * side + piece - 1) // (2 * piece))  # side / piece, rounded half down
    length, longer = divmod(side, count)
    pieces = [(length + 1, longer), (length, count - longer)]
    return [(length, count) for length, count in pieces if count]


def _cut_pairs(side: int, piece: int) -> _Pieces:
    """Return pieces of even lengths near `piece`. The last value of an odd side is in none."""
    return [(2 * pairs, count) for pairs, count in _cut(side // 2, max(1, min(piece, side) // 2))]


def _regions(rows: Sequence[tuple[int, int]], columns: Sequence[tuple[int, int]]) -> tuple[Region, ...]:
    regions = []
    top = 0
    for th, down in rows:
        left = 0
        for tw, across in columns:
            regions.append(Region(top, left, th * down, tw * across, (th, tw)))
            left += tw * across
        top += th * down
    return tuple(regions)
