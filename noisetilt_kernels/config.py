"""Configuration of the whitening operator: the presets of DESIGN section 5 and their resolution on a shape."""

import math
from dataclasses import dataclass
from functools import lru_cache
from operator import index
from typing import NamedTuple

Tile = tuple[int, int]
FULL: Tile = (0, 0)
"""The tile that covers the whole H x W plane of a channel."""


def check_alpha(op: str, alpha: float) -> None:
    """Raises ValueError unless 0 < alpha < 1, TypeError if it is no number."""
    if not isinstance(alpha, (int, float)):
        raise TypeError(f"{op}: alpha must be a number, got {alpha!r}")
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"{op}: alpha must lie strictly between 0 and 1, got {alpha}")


@dataclass(frozen=True)
class WhiteningConfig:
    """What W projects onto, and in which domains.

    Attributes:
        chunk_sizes: chunk sizes D of the 2OS projections, applied in order. Each must divide the number
            of values of a sample.
        tile_sizes: tiles (th, tw) of the tile statistics, applied in order; each must divide (H, W).
        mixing: mixing domains ((th, tw), repeats), applied in order. `FULL` stands for the whole H x W
            plane, repeats 0 for ceil(log2(th * tw)).
        alpha: the confidence level is 1 - alpha, 0 < alpha < 1.

    Raises:
        ValueError, TypeError: a value out of its range or of the wrong type.
    """

    chunk_sizes: tuple[int, ...]
    tile_sizes: tuple[Tile, ...]
    mixing: tuple[tuple[Tile, int], ...]
    alpha: float = 1e-4

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "chunk_sizes", tuple(index(d) for d in self.chunk_sizes))
            object.__setattr__(
                self, "tile_sizes", tuple((index(th), index(tw)) for th, tw in self.tile_sizes)
            )
            object.__setattr__(
                self, "mixing", tuple(((index(th), index(tw)), index(n)) for (th, tw), n in self.mixing)
            )
        except (TypeError, ValueError) as error:
            raise TypeError(
                "WhiteningConfig: chunk_sizes must be integers, tile_sizes pairs (th, tw), "
                f"mixing pairs ((th, tw), repeats); got {self.chunk_sizes!r}, {self.tile_sizes!r}, {self.mixing!r}"
            ) from error
        check_alpha("WhiteningConfig", self.alpha)
        if not self.chunk_sizes or min(self.chunk_sizes) < 1:
            raise ValueError(
                f"WhiteningConfig: chunk_sizes must be positive and not empty, got {self.chunk_sizes}"
            )
        for th, tw in self.tile_sizes:
            if th < 1 or tw < 1 or th * tw < 2:
                raise ValueError(f"WhiteningConfig: a tile needs at least 2 values, got {th}x{tw}")
        for (th, tw), repeats in self.mixing:
            if (th, tw) != FULL and (th < 1 or tw < 1 or th * tw % 2):
                raise ValueError(
                    f"WhiteningConfig: a mixing tile needs an even number of values, got {th}x{tw}"
                )
            if repeats < 0:
                raise ValueError(f"WhiteningConfig: mixing repeats must not be negative, got {repeats}")


_PRESETS = {
    "flux": WhiteningConfig((4, 16), ((4, 4), (8, 8), (16, 16)), ((FULL, 0), ((8, 8), 0))),
    "wan": WhiteningConfig((4, 16), ((4, 4), (12, 8)), ((FULL, 0), ((4, 8), 0))),
}
PRESETS = (*_PRESETS, "auto")


def preset(name: str) -> WhiteningConfig:
    """The named preset, "flux" or "wan" ("auto" is made for each shape: `resolve_preset`).

    Raises:
        ValueError: unknown name.
    """
    if name not in _PRESETS:
        raise ValueError(f"preset: unknown preset {name!r}; valid: {', '.join(map(repr, _PRESETS))}")
    return _PRESETS[name]


class Sample(NamedTuple):
    """Shape of one sample as channels, height and width; flat where it was given as (N,)."""

    channels: int
    height: int
    width: int
    flat: bool = False

    @property
    def size(self) -> int:
        return self.channels * self.height * self.width


@lru_cache(maxsize=256)
def resolve_preset(name: str, sample: Sample, alpha: float) -> WhiteningConfig:
    """The configuration that preset `name` means on samples of this shape, every tile and repeat concrete.

    Raises:
        ValueError: unknown preset, or one that does not fit the shape.
    """
    if name not in PRESETS:
        raise ValueError(f"whiten: unknown preset {name!r}; valid: {', '.join(map(repr, PRESETS))}")
    check_alpha("whiten", alpha)
    config = _auto(sample) if name == "auto" else _PRESETS[name]
    return resolve(WhiteningConfig(config.chunk_sizes, config.tile_sizes, config.mixing, alpha), sample)


@lru_cache(maxsize=256)
def resolve(config: WhiteningConfig, sample: Sample) -> WhiteningConfig:
    """`config` with `FULL` and repeats 0 replaced by what they mean on this sample.

    Raises:
        ValueError: the configuration does not fit the shape; the message names what would.
    """
    _, height, width, _ = sample
    if sample.size % 2:
        raise ValueError(f"whiten: a sample needs an even number of values, got {_describe(sample)}")
    for chunk_size in config.chunk_sizes:
        if sample.size % chunk_size:
            raise ValueError(
                f"whiten: chunk size {chunk_size} does not divide the {sample.size} values of {_describe(sample)}; "
                f"chunk sizes that do: {_some(_divisors(sample.size))}"
            )
    for tile in config.tile_sizes:
        check_tile("whiten", tile, sample)
    mixing = []
    for tile, repeats in config.mixing:
        th, tw = (height, width) if tile == FULL else tile
        check_tile("whiten", (th, tw), sample, even=True)
        mixing.append(((th, tw), repeats or _log2_ceil(th * tw)))
    return WhiteningConfig(config.chunk_sizes, config.tile_sizes, tuple(mixing), config.alpha)


def check_tile(op: str, tile: Tile, sample: Sample, *, even: bool = False) -> None:
    """Raises ValueError unless `tile` divides the plane of `sample` and holds 2 values or more (`even`: an even number
    of them)."""
    th, tw = tile
    _, height, width, _ = sample
    if th < 1 or tw < 1 or height % th or width % tw:
        raise ValueError(
            f"{op}: tile {th}x{tw} does not divide the {height}x{width} plane of {_describe(sample)}; "
            f"heights that do: {_some(_divisors(height))}; widths: {_some(_divisors(width))}"
        )
    if th * tw < 2 or (even and th * tw % 2):
        raise ValueError(
            f"{op}: tile {th}x{tw} must hold {'an even number of' if even else 'at least 2'} values"
        )


def _auto(sample: Sample) -> WhiteningConfig:
    if sample == Sample(16, 64, 64):
        return _PRESETS["flux"]
    if sample == Sample(336, 60, 104):
        return _PRESETS["wan"]
    chunk_sizes = tuple(d for d in (4, 16) if sample.size % d == 0)
    if not chunk_sizes:
        raise ValueError(
            f"whiten: preset 'auto' needs a number of values divisible by 4 or 16, got {sample.size} "
            f"in {_describe(sample)}; pass a WhiteningConfig to nt.whiten with chunk sizes of your own"
        )
    tiles: list[Tile] = []
    for target in (4, 8, 16):
        tile = _nearest_tile(sample, target)
        if tile[0] * tile[1] >= 2 and tile not in tiles:
            tiles.append(tile)
    mixing = [FULL] if sample.height * sample.width % 2 == 0 else []
    small = _nearest_tile(sample, 8)
    if small[0] * small[1] % 2 == 0:
        mixing.append(small)
    return WhiteningConfig(chunk_sizes, tuple(tiles), tuple((tile, 0) for tile in mixing))


def _nearest_tile(sample: Sample, target: int) -> Tile:
    """The tile nearest target x target; a flat sample's tiles hold as many values in one row."""
    if sample.flat:
        return 1, _nearest_divisor(sample.width, target * target)
    return _nearest_divisor(sample.height, target), _nearest_divisor(sample.width, target)


def _nearest_divisor(n: int, target: int) -> int:
    return min(_divisors(n), key=lambda d: (abs(d - target), d))


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _log2_ceil(n: int) -> int:
    return (n - 1).bit_length()


def _describe(sample: Sample) -> str:
    channels, height, width, flat = sample
    return f"a flat sample of {width} values" if flat else f"a {channels}x{height}x{width} sample"


def _some(values: list[int]) -> str:
    shown = [str(v) for v in values[:12]]
    return ", ".join([*shown, "..."] if len(values) > 12 else shown)
