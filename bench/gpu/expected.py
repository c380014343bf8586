"""Cases of the operators, and their results by the reference, which `prepare` writes to a file.

A machine with a GPU reads the file and computes no reference. Inputs are in the file too: they contain FFTs
and random numbers, which another machine may round differently. The large samples of a video are made from
integers, the same everywhere, and of their results only digests are in the file.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inputs import tables, values
from torch import Tensor

from noisetilt_kernels import python_ref
from noisetilt_kernels.backends import cpu, cuda, reference, table_cache
from noisetilt_kernels.backends.reference import tables_like
from noisetilt_kernels.config import Sample, WhiteningConfig, flatten_mixing, resolve_preset

from ..inputs import FLUX, WAN, gaussian, structured
from . import CARRIED
from .compare import assert_agrees

ops = torch.ops.noisetilt

FILE = CARRIED / "expected.npz"
TABLES = CARRIED / "tables.npz"

NAMES = ("noise", "1/k", "ties")
ALPHA = 1e-3
CONFIGS = {
    preset: resolve_preset(preset, Sample(*shape), ALPHA) for preset, shape in (("flux", FLUX), ("wan", WAN))
}
SMALL = (4, 16, 16)
CONFIGS["small"] = WhiteningConfig((4, 16), ((4, 4), (8, 8)), (((16, 16), 8), ((8, 8), 3)))

Compare = Callable[[Tensor, Tensor], str]
Pair = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]  # the operator, and the reference


# ---- inputs ----


def flux(dtype: torch.dtype = torch.float32) -> Tensor:
    """Noise, a 1/k field, and few different values, (3, 16, 64, 64)."""
    return torch.stack([gaussian(FLUX), structured(FLUX), values("few values", FLUX)]).to(dtype)


def small(dtype: torch.dtype) -> Tensor:
    return torch.stack([values(name, SMALL, dtype) for name in ("normal", "1/k", "few values")])


def video(field: str) -> Tensor:
    """A sample (1, 336, 60, 104) from integers: the sum of four numbers, or a walk of such steps."""
    x = torch.arange(4 * math.prod(WAN))
    for _ in range(3):
        x = (x ^ (x >> 15)) * 0x2C1B3C6D % 2**32
    steps = ((x >> 16).view(4, *WAN).sum(0) - 2 * (2**16 - 1))[None]
    return (steps if field == "noise" else steps.cumsum(-1)).float() * 2.0**-15


# ---- comparisons ----


def same_bits(actual: Tensor, expected: Tensor) -> str:
    """Assert equal bits; float64 may differ by rounding."""
    assert_agrees(actual, expected)
    return "same bits" if torch.equal(actual, expected) or expected.isnan().any() else "equal to 1e-12"


def digests(x: Tensor, parts: int = 64) -> Tensor:
    """Return digests of the bits of equal parts of x, in which -0 differs from +0."""
    pieces = x.contiguous().view(torch.int32).view(parts, -1).numpy()
    hashed = [hashlib.blake2b(piece.tobytes(), digest_size=8).digest() for piece in pieces]
    return torch.frombuffer(bytearray(b"".join(hashed)), dtype=torch.int64)


def same_digests(actual: Tensor, expected: Tensor) -> str:
    differ = (digests(actual) != expected).nonzero().flatten().tolist()
    assert not differ, f"other bits in {len(differ)} of {len(expected)} parts, the first {differ[0]}"
    return "same bits"


# ---- cases ----


@dataclass(frozen=True)
class Case:
    """A call of an operator on samples, and the same by the reference.

    Attributes:
        input: name of the input in INPUTS.
        op: the operator, for a tensor on the device.
        reference: the reference, for a tensor on the CPU.
        compare: raises AssertionError if the results differ too much, and returns how near they are.
        of_cuda: only the CUDA library has the operator.
    """

    input: str
    op: Callable[[Tensor], Tensor]
    reference: Callable[[Tensor], Tensor]
    compare: Compare = same_bits
    of_cuda: bool = False


def _order_stats(table: str, num_chunks: int, chunk_size: int) -> Pair:
    @cache
    def on(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        return [t.to(device) for t in tables(table, num_chunks, chunk_size, dtype)]

    return (
        lambda x: ops.project_2os(x.flatten(1), *on(x.device, x.dtype)),
        lambda x: python_ref.project_2os(x.flatten(1), *on(x.device, x.dtype)),
    )


def _butterfly(tile: tuple[int, int], steps: int, inverse: bool) -> Pair:
    of_reference = python_ref.butterfly_inverse if inverse else python_ref.butterfly
    return lambda x: ops.butterfly(x, tile, steps, inverse), lambda x: of_reference(x, tile, steps)


def _hadamard(size: int) -> Pair:
    return (
        lambda x: ops.hadamard_transform(x.reshape(len(x), -1, size), 0.3),
        lambda x: python_ref.hadamard_transform(x.reshape(len(x), -1, size), 0.3),
    )


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.reshape(len(x), -1, 2))


def _wgnc_blocks(block_size: int) -> Pair:
    return (
        lambda x: torch.view_as_real(ops.project_wgnc_blocks(_complex(x), block_size)),
        lambda x: torch.view_as_real(python_ref.project_wgnc_blocks(_complex(x), block_size)),
    )


def _tile_stats(tile: tuple[int, int]) -> Pair:
    return (
        lambda x: ops.project_tile_stats(x, tile, [4, 16], ALPHA),
        lambda x: python_ref.project_tile_stats(x, tile, (4, 16), tables_like(x, ALPHA)),
    )


def _projection(x: Tensor, config: WhiteningConfig) -> Tensor:
    """Return the handle of the tables of project(x), which the kernels need."""
    backend = cpu if x.device.type == "cpu" else cuda
    sizes = config.chunk_sizes
    return backend._projections(x, sizes, sizes, config.tile_sizes, config.alpha).handle


def _project(config: WhiteningConfig) -> Pair:
    def on_device(x: Tensor) -> Tensor:
        result = x.clone()
        ops._project_(result, _projection(x, config))
        return result

    def by_reference(x: Tensor) -> Tensor:
        return python_ref.project(x, config.chunk_sizes, config.tile_sizes, tables_like(x, config.alpha))

    return on_device, by_reference


def _mixing_domains(config: WhiteningConfig) -> Pair:
    def on_device(x: Tensor) -> Tensor:
        result = x.clone()
        ops._project_mixing_domains_(result, _projection(x, config), flatten_mixing(config))
        return result

    def by_reference(x: Tensor) -> Tensor:
        project = _project(config)[1]
        for tile, repeats in config.mixing:
            for _ in range(repeats):
                x = project(python_ref.butterfly(x, tile, 1))
            x = python_ref.butterfly_inverse(x, tile, repeats)
        return x

    return on_device, by_reference


def _whiten(config: WhiteningConfig) -> Pair:
    mixing = flatten_mixing(config)
    tiles = [side for tile in config.tile_sizes for side in tile]
    return (
        lambda x: ops._whiten_config(x, config.chunk_sizes, tiles, mixing, config.alpha),
        lambda x: reference.whiten(x, config),
    )


def _fourier_of_projected(x: Tensor, config: WhiteningConfig) -> Tensor:
    return python_ref.compact_fourier(_project(config)[1](x).flatten(1)).view(x.shape)


INPUTS: dict[str, Callable[[], Tensor]] = {
    "flux": flux,
    "flux spectrum": lambda: _fourier_of_projected(flux(), CONFIGS["flux"]),
    "small, float64": lambda: small(torch.float64),
    "small spectrum, float64": lambda: _fourier_of_projected(small(torch.float64), CONFIGS["small"]),
}
SPECTRA = {"flux": "flux spectrum", "small, float64": "small spectrum, float64"}
VIDEOS: dict[str, Callable[[], Tensor]] = {
    "wan noise": lambda: video("noise"),
    "wan walk": lambda: video("walk"),
}


def _cases() -> dict[str, Case]:
    """Return the cases. Kernels without a barrier between blocks come first: they cannot hang."""
    made: dict[str, Case] = {}
    for input, config, order_stats in (
        ("flux", CONFIGS["flux"], ((16_384, 4), (4096, 16), (128, 512))),
        ("small, float64", CONFIGS["small"], ((256, 4), (64, 16), (2, 512))),
    ):
        side, spectrum = config.mixing[0][0][0], SPECTRA[input]
        made |= {
            f"hadamard_transform of {side * side}, {input}": Case(input, *_hadamard(side * side)),
            f"hadamard_transform of {side * side * 4}, {input}": Case(input, *_hadamard(side * side * 4)),
            f"butterfly {side}x{side}, {input}": Case(input, *_butterfly((side, side), 8, False)),
            f"inverse butterfly {side}x{side}, {input}": Case(input, *_butterfly((side, side), 8, True)),
            f"butterfly 8x8, {input}": Case(input, *_butterfly((8, 8), 6, False)),
            f"project_wgnc_blocks of 16, {input}": Case(input, *_wgnc_blocks(16)),
            f"project_wgnc_blocks of 32, {input}": Case(input, *_wgnc_blocks(32)),
            f"compact_fourier, {input}": Case(
                input,
                lambda x: ops.compact_fourier(x.flatten(1)),
                lambda x: python_ref.compact_fourier(x.flatten(1)),
            ),
            f"compact_fourier inverse, {input}": Case(
                input,
                lambda x: ops.compact_fourier(x.flatten(1), True),
                lambda x: python_ref.compact_fourier_inverse(x.flatten(1)),
            ),
            f"project_wgnc, {input}": Case(
                input,
                lambda x: ops.project_wgnc(x.flatten(1)),
                lambda x: python_ref.project_wgnc(x.flatten(1)),
            ),
            f"finite_or_nan, {input}": Case(input, ops._finite_or_nan, torch.clone, of_cuda=True),
        }
        for num_chunks, chunk_size in order_stats:
            made[f"project_2os {num_chunks}x{chunk_size}, {input}"] = Case(
                input, *_order_stats("typical", num_chunks, chunk_size)
            )
        num_chunks, chunk_size = order_stats[0]
        made[f"project_2os {num_chunks}x{chunk_size}, unsorted table, {input}"] = Case(
            input, *_order_stats("unsorted", num_chunks, chunk_size)
        )
        for tile in config.tile_sizes:
            made[f"project_tile_stats {tile[0]}x{tile[1]}, {input}"] = Case(input, *_tile_stats(tile))
        made |= {
            f"project, {input}": Case(input, *_project(config), of_cuda=True),
            f"project, {spectrum}": Case(spectrum, *_project(config), of_cuda=True),
            f"mixing domains, {input}": Case(input, *_mixing_domains(config), of_cuda=True),
            f"whiten, {input}": Case(input, *_whiten(config)),
        }
    wan = CONFIGS["wan"]
    for name in VIDEOS:
        made[f"project, {name}"] = Case(name, *_project(wan), same_digests, of_cuda=True)
    # Fewer steps than the preset has: the reference takes seconds for each.
    name, few = "wan walk", replace(wan, mixing=tuple((tile, 2) for tile, _ in wan.mixing))
    made[f"mixing domains, {name}"] = Case(name, *_mixing_domains(few), same_digests, of_cuda=True)
    return made


CASES = _cases()


# ---- files ----


def save() -> None:
    """Compute the results of all cases by the reference, and write them with their inputs."""
    made = {name: make() for name, make in (INPUTS | VIDEOS).items()}
    contents = {f"input: {name}": made[name] for name in INPUTS}
    for name, case in CASES.items():
        result = case.reference(made[case.input])
        contents[name] = digests(result) if case.compare is same_digests else result
    np.savez_compressed(FILE, **{name: tensor.numpy() for name, tensor in contents.items()})  # type: ignore[arg-type]


class Expected:
    """Contents of the file."""

    def __init__(self) -> None:
        self._file = np.load(FILE)

    def input(self, case: Case) -> Tensor:
        """Return the input of a case, on the CPU."""
        video = VIDEOS.get(case.input)
        return self._tensor(f"input: {case.input}") if video is None else video()

    def result(self, name: str) -> Tensor:
        """Return the reference's result of a case, or its digests."""
        return self._tensor(name)

    def _tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self._file[name])


def pack_tables(folder: Path) -> None:
    """Write the confidence tables of a cache folder to TABLES, in a tenth of their size.

    The bounds grow evenly, so the second differences of their bits are small numbers.
    """
    from safetensors import safe_open

    packed: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            bounds = torch.stack([file.get_tensor("lower"), file.get_tensor("upper")]).numpy()
        patterns = bounds.view(f"i{bounds.itemsize}")
        before = np.zeros_like(patterns, shape=(*patterns.shape[:2], 2))
        packed[f"{metadata['monotone']}|{metadata['key']}"] = np.diff(patterns, n=2, prepend=before)
    np.savez_compressed(TABLES, **packed)


def unpack_tables() -> int:
    """Write the tables of TABLES to the package's cache, and return their number, or 0 without safetensors.

    Another version of scipy may compute other tables, so they come with the expected results.
    """
    if table_cache.directory() is None:
        return 0
    with np.load(TABLES) as packed:
        for name in packed.files:
            monotone, key = name.split("|", 1)
            differences = packed[name]
            patterns = differences.cumsum(-1, dtype=differences.dtype).cumsum(-1, dtype=differences.dtype)
            lower, upper = torch.from_numpy(patterns.view(f"f{differences.itemsize}")).clone()
            table_cache.write(key, table_cache.Columns(lower, upper, monotone == "True"))
        return len(packed.files)


if __name__ == "__main__":
    folder = table_cache.directory()
    assert folder is not None
    save()
    pack_tables(folder)
