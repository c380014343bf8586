"""Configuration of the whitening operator: presets (DESIGN section 5), and how they adapt to a shape."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any, NamedTuple

from .checks import check_choice, check_number, shown
from .python_ref import DEFAULT_ALPHA, MOST_DF, Region, mixing_regions, tile_regions

Tile = tuple[int, int]
FULL: Tile = (0, 0)
"""Tile that covers the whole H x W plane of a channel."""


LEAST_ALPHA, MOST_ALPHA = 1e-100, 0.999999
"""Smallest and largest alpha. Outside, a table of float64 numbers has NaN or crossed bounds."""

MOST_STEPS = 1024
"""Largest number of butterfly steps. A tile of K values is mixed completely after log2(K) steps."""

MOST_CHUNKS, MOST_CHUNK_SIZE = 2**32, 2**31 - 1
"""Largest number of chunks, and largest chunk size: their numbers have 32 bits in the kernels."""


def check_alpha(function: str, alpha: float) -> None:
    """Raise ValueError if alpha is out of its range, and TypeError if it is not a number."""
    check_number(function, "alpha", alpha, LEAST_ALPHA, MOST_ALPHA)


def check_steps(function: str, name: str, steps: int) -> None:
    """Raise ValueError unless 0 <= steps <= MOST_STEPS."""
    if steps < 0:
        raise ValueError(f"{function}: {name} must not be negative, got {steps}")
    if steps > MOST_STEPS:
        raise ValueError(f"{function}: {name} must be at most {MOST_STEPS}, got {steps}")


def check_chunks(function: str, num_chunks: int, chunk_size: int) -> None:
    """Raise ValueError if there are too many chunks for the kernels, or they are too large."""
    if num_chunks > MOST_CHUNKS or chunk_size > MOST_CHUNK_SIZE:
        raise ValueError(
            f"{function}: {num_chunks} chunks of {chunk_size} values are too many; the kernels take "
            f"{MOST_CHUNKS} chunks of up to {MOST_CHUNK_SIZE} values"
        )


@dataclass(frozen=True, init=False, repr=False)
class WhiteningConfig:
    """Constraints of the whitening operator W, and the domains in which W projects onto them.

    The constructor accepts any sequences, also lists, and stores them as tuples.

    Attributes:
        chunk_sizes: chunk sizes D of the 2OS projections, applied in order. Each must divide the number of
            values of a sample.
        tile_sizes: tile sizes (th, tw) of the tile statistics, applied in order, up to (H, W). A side that a
            tile does not divide is cut into pieces of nearly this length, which differ by at most one.
        mixing: mixing domains ((th, tw), repeats), applied in order. `FULL` is the tile that covers the H x W
            plane, but for the last column if H and W are odd. Repeats 0 stands for ceil(log2(K)), where K is
            the number of values of the largest tile; at most 1024.
        alpha: significance level, 1e-100 to 0.999999. The confidence level is 1 - alpha.

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.
    """

    chunk_sizes: tuple[int, ...]
    tile_sizes: tuple[Tile, ...]
    mixing: tuple[tuple[Tile, int], ...]
    alpha: float

    def __init__(
        self,
        chunk_sizes: Sequence[int],
        tile_sizes: Sequence[Sequence[int]],
        mixing: Sequence[Sequence[Sequence[int] | int]],
        alpha: float = DEFAULT_ALPHA,
    ) -> None:
        try:
            sizes = tuple(index(d) for d in chunk_sizes)
            tiles = tuple((index(th), index(tw)) for th, tw in tile_sizes)
            domains = tuple(_domain(*domain) for domain in mixing)
        except (TypeError, ValueError) as error:
            raise TypeError(
                "WhiteningConfig: chunk_sizes must be integers, tile_sizes pairs (th, tw), "
                "mixing pairs ((th, tw), repeats); "
                f"got {shown(chunk_sizes)}, {shown(tile_sizes)}, {shown(mixing)}"
            ) from error
        check_alpha("WhiteningConfig", alpha)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"WhiteningConfig: chunk_sizes must be positive and not empty, got {sizes}")
        for th, tw in tiles:
            if th < 1 or tw < 1 or th * tw < 2:
                raise ValueError(f"WhiteningConfig: a tile needs at least 2 values, got {th}x{tw}")
        for (th, tw), repeats in domains:
            if (th, tw) != FULL and (th < 1 or tw < 1 or th * tw % 2):
                raise ValueError(
                    f"WhiteningConfig: a mixing tile needs an even number of values, got {th}x{tw}"
                )
            check_steps("WhiteningConfig", "mixing repeats", repeats)
        for name, value in (
            ("chunk_sizes", sizes),
            ("tile_sizes", tiles),
            ("mixing", domains),
            ("alpha", float(alpha)),
        ):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        """Describe the configuration on one line: tiles as "4x4", mixing domains as "64x64 in 12 steps"."""
        sizes = ", ".join(map(str, self.chunk_sizes))
        tiles = ", ".join(f"{th}x{tw}" for th, tw in self.tile_sizes) or "none"
        mixing = ", ".join(_mixing_text(tile, repeats) for tile, repeats in self.mixing) or "none"
        return f"WhiteningConfig(chunks: {sizes}; tiles: {tiles}; mixing: {mixing}; alpha: {self.alpha:g})"


def _domain(tile: Any, repeats: Any) -> tuple[Tile, int]:
    th, tw = tile
    return (index(th), index(tw)), index(repeats)


def _mixing_text(tile: Tile, repeats: int) -> str:
    size = "full plane" if tile == FULL else f"{tile[0]}x{tile[1]}"
    return f"{size} in {_steps_text(repeats) if repeats else 'ceil(log2) steps'}"


def _steps_text(steps: int) -> str:
    return f"{steps} {'step' if steps == 1 else 'steps'}"


_PRESETS = {
    "flux": WhiteningConfig((4, 16), ((4, 4), (8, 8), (16, 16)), ((FULL, 0), ((8, 8), 0))),
    "wan": WhiteningConfig((4, 16), ((4, 4), (12, 8)), ((FULL, 0), ((4, 8), 0))),
}
PRESETS = (*_PRESETS, "auto")


def preset(name: str, shape: Sequence[int] | None = None) -> WhiteningConfig:
    """Return the configuration of a preset (DESIGN section 5).

    Args:
        name: "flux", "wan", or "auto", which chooses the tiles by the shape.
        shape: shape of a tensor that `whiten` accepts: (N,), (B,N), (C,H,W), (B,C,H,W) or (B,C,F,H,W).
            Required for "auto".

    Returns:
        With a shape the configuration that `whiten` uses for it: `FULL` and repeats 0 are replaced by
        numbers. Without a shape the preset as defined.

    Raises:
        ValueError: the name is unknown, "auto" has no shape, or the preset does not fit the shape.
    """
    check_choice("preset", "preset", name, PRESETS)
    if shape is not None:
        return resolve_preset(name, sample_of("preset", shape), DEFAULT_ALPHA)
    if name == "auto":
        raise ValueError("preset: 'auto' needs a shape, got none; write preset('auto', x.shape)")
    return _PRESETS[name]


class Sample(NamedTuple):
    """Shape of one sample as channels, height and width. `flat` marks a sample of shape (N,)."""

    channels: int
    height: int
    width: int
    flat: bool = False

    @property
    def size(self) -> int:
        """Number of values."""
        return self.channels * self.height * self.width


BATCHED_RANKS = (2, 4, 5)
"""Numbers of dimensions of tensors of several samples: (B,N), (B,C,H,W) and (B,C,F,H,W)."""


def sample_of(function: str, shape: Sequence[int], name: str = "x") -> Sample:
    """Return the shape of one sample of a tensor (N,), (B,N), (C,H,W), (B,C,H,W) or (B,C,F,H,W).

    Raises:
        ValueError: the shape is none of these, or a sample is empty.
        TypeError: `shape` is not a sequence of integers.
    """
    try:
        rank = len(shape)
        # the size of the batch stays symbolic under torch.compile
        sizes = [index(n) for n in (shape[1:] if rank in BATCHED_RANKS else shape)]
    except TypeError:
        raise TypeError(f"{function}: the shape must be a sequence of integers, got {shown(shape)}") from None
    if not 1 <= rank <= 5:
        raise ValueError(
            f"{function}: {name} must be (N,), (B,N), (C,H,W), (B,C,H,W) or (B,C,F,H,W), got {tuple(shape)}"
        )
    if rank <= 2:
        sample = Sample(1, 1, sizes[0], flat=True)
    else:
        *channels, height, width = sizes
        sample = Sample(math.prod(channels), height, width)
    if sample.size == 0:
        raise ValueError(f"{function}: {name} has empty samples: {tuple(shape)}")
    return sample


def flatten(config: WhiteningConfig) -> tuple[list[int], list[int], list[int], float]:
    """Return a configuration as numbers, the arguments of the operator `_whiten_config`."""
    return (
        list(config.chunk_sizes),
        [n for tile in config.tile_sizes for n in tile],
        flatten_mixing(config),
        config.alpha,
    )


def flatten_mixing(config: WhiteningConfig) -> list[int]:
    """Return the mixing domains as numbers: th, tw and repeats of each."""
    return [n for tile, repeats in config.mixing for n in (*tile, repeats)]


def unflatten(
    chunk_sizes: Sequence[int], tile_sizes: Sequence[int], mixing: Sequence[int], alpha: float
) -> WhiteningConfig:
    """Return the configuration of which `flatten` made these numbers.

    Raises:
        ValueError, TypeError: the numbers are not a valid configuration.
    """
    if len(tile_sizes) % 2 or len(mixing) % 3:
        raise ValueError(
            "whiten: tile_sizes lists pairs th, tw and mixing triples th, tw, repeats, "
            f"got {len(tile_sizes)} and {len(mixing)} numbers"
        )
    return WhiteningConfig(
        chunk_sizes,
        tuple(zip(tile_sizes[0::2], tile_sizes[1::2], strict=True)),
        tuple(zip(zip(mixing[0::3], mixing[1::3], strict=True), mixing[2::3], strict=True)),
        alpha,
    )


def resolve_preset(name: str, sample: Sample, alpha: float) -> WhiteningConfig:
    """Return the configuration of a preset for samples of this shape, with numbers for every tile and repeat.

    Raises:
        ValueError: the preset is unknown or does not fit the shape.
    """
    check_choice("whiten", "preset", name, PRESETS)
    check_alpha("whiten", alpha)
    config = _auto(sample) if name == "auto" else _PRESETS[name]
    return resolve(replace(config, alpha=alpha), sample)


def resolve(config: WhiteningConfig, sample: Sample) -> WhiteningConfig:
    """Return `config` with `FULL` and repeats 0 replaced by their values for this sample.

    Raises:
        ValueError: the configuration does not fit the shape. The message says what does.
    """
    if sample.size % 2:
        raise ValueError(f"whiten: a sample needs an even number of values, got {_describe(sample)}")
    for chunk_size in config.chunk_sizes:
        if sample.size % chunk_size:
            raise ValueError(
                f"whiten: chunk size {chunk_size} does not divide the {sample.size} values of "
                f"{_describe(sample)}; "
                f"chunk sizes that do: {_some(_divisors(sample.size))}"
            )
        check_chunks("whiten", sample.size // chunk_size, chunk_size)
    for tile in config.tile_sizes:
        check_tile("whiten", tile, sample)
    mixing = []
    for tile, repeats in config.mixing:
        tile = _made_even(sample[1:3]) if tile == FULL else tile
        check_tile("whiten", tile, sample, even=True)
        mixing.append((tile, repeats or _log2_ceil(largest_of(mixing_regions(sample[1:3], tile)))))
    return replace(config, mixing=tuple(mixing))


def describe(config: WhiteningConfig, sample: Sample) -> str:
    """Describe a resolved configuration on one line. A tile that does not divide the plane of the samples is
    followed by the sides of the tiles that fill it: "8x8 (7-8 x 8)".
    """
    plane = sample.height, sample.width
    tiles = [_tile_text(tile, tile_regions(plane, tile)) for tile in config.tile_sizes]
    mixing = [
        f"{_tile_text(tile, mixing_regions(plane, tile))} in {_steps_text(steps)}"
        for tile, steps in config.mixing
    ]
    return (
        f"chunks {', '.join(map(str, config.chunk_sizes))}; tiles {', '.join(tiles) or 'none'}; "
        f"mixing {', '.join(mixing) or 'none'}"
    )


def _tile_text(tile: Tile, regions: Sequence[Region]) -> str:
    text = f"{tile[0]}x{tile[1]}"
    if {region.tile for region in regions} == {tile}:
        return text
    sides = [sorted({region.tile[axis] for region in regions}) for axis in (0, 1)]
    return f"{text} ({' x '.join('-'.join(map(str, side)) for side in sides)})"


def _made_even(tile: Tile) -> Tile:
    """Return the tile without its last column or row if its number of values is odd."""
    height, width = tile
    if height * width % 2 == 0 or height * width == 1:
        return tile
    return (height, width - 1) if width > 1 else (height - 1, width)


def largest_of(regions: Sequence[Region]) -> int:
    """Return the number of values of the largest tile of a plane."""
    return max(math.prod(region.tile) for region in regions)


def check_tile(function: str, tile: Tile, sample: Sample, *, even: bool = False) -> None:
    """Raise ValueError unless `tile` fits into the plane of `sample` and has at least 2 values.

    The tiles into which it cuts the plane may have MOST_DF + 1 values. With `even` the number of values of
    `tile` must be even, and is not limited: there are no statistics.
    """
    th, tw = tile
    _, height, width, _ = sample
    if not (1 <= th <= height and 1 <= tw <= width):
        raise ValueError(
            f"{function}: tile {th}x{tw} does not fit into the {height}x{width} plane of "
            f"{_describe(sample)}; a tile may be at most {height}x{width}"
        )
    if th * tw < 2 or (even and th * tw % 2):
        raise ValueError(
            f"{function}: tile {th}x{tw} must hold {'an even number of' if even else 'at least 2'} values"
        )
    most = largest_of(tile_regions(sample[1:3], tile))
    if not even and most - 1 > MOST_DF:
        raise ValueError(
            f"{function}: tile {th}x{tw} cuts the {height}x{width} plane into tiles of up to {most} values; "
            f"a tile may have {MOST_DF + 1}"
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
            f"in {_describe(sample)}; pass a WhiteningConfig with other chunk sizes to nt.whiten"
        )
    tiles: list[Tile] = []
    for target in (4, 8, 16):
        tile = _auto_tile(sample, target, _near)
        if not _all_projected(sample, tile, chunk_sizes):
            tile = _auto_tile(sample, target, _nearest_divisor)
        if tile[0] * tile[1] >= 2 and tile not in tiles:
            tiles.append(tile)
    mixing = [FULL, _auto_mixing_tile(sample)] if tiles else []
    return WhiteningConfig(chunk_sizes, tuple(tiles), tuple((tile, 0) for tile in mixing))


def _auto_tile(sample: Sample, target: int, side: Callable[[int, int], int]) -> Tile:
    """Return the tile near target x target; for a flat sample, 1 x about target^2.

    Args:
        side: function of the length of a side and the target that returns the side of the tile.
    """
    if sample.flat:
        return 1, side(sample.width, target * target)
    return side(sample.height, target), side(sample.width, target)


def _all_projected(sample: Sample, tile: Tile, chunk_sizes: Sequence[int]) -> bool:
    """Return True if for tiles of every size a chunk size divides their number."""
    counts = (sample.channels * region.tiles_per_plane for region in tile_regions(sample[1:3], tile))
    return all(any(count % chunk_size == 0 for chunk_size in chunk_sizes) for count in counts)


def _auto_mixing_tile(sample: Sample) -> Tile:
    """Return the tile of the small mixing domain, which has an even number of values.

    If the tile of target 8 has an odd one, the side that `mixing_regions` cuts in pairs becomes even: a
    divisor of the side, if there is one near the target.
    """
    th, tw = _auto_tile(sample, 8, _near)
    if th * tw % 2 == 0:
        return th, tw
    if sample.width % 2 == 0:
        return th, _near(sample.width, 64 if sample.flat else 8, step=2)
    if sample.height % 2 == 0:
        return _near(sample.height, 8, step=2), tw
    return _made_even((th, tw))


def _near(side: int, target: int, step: int = 1) -> int:
    """Return the divisor of a side nearest to the target, or, if it differs by more than a quarter, the
    target itself, which then leaves a remainder. Divisors that `step` does not divide do not count.
    """
    nearest = _nearest_divisor(side, target, step)
    return nearest if 4 * abs(nearest - target) <= target else min(target, side)


def _nearest_divisor(side: int, target: int, step: int = 1) -> int:
    """Return the divisor of a side nearest to the target, ties to the smaller one."""
    return min((d for d in _divisors(side) if d % step == 0), key=lambda d: (abs(d - target), d))


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _log2_ceil(n: int) -> int:
    return (n - 1).bit_length()


def _describe(sample: Sample) -> str:
    channels, height, width, flat = sample
    return f"a flat sample of {width} values" if flat else f"a {channels}x{height}x{width} sample"


def _some(values: list[int]) -> str:
    first = [str(v) for v in values[:12]]
    return ", ".join([*first, "..."] if len(values) > 12 else first)
