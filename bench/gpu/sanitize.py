"""Run every kernel on small inputs, for compute-sanitizer: `python -m bench.gpu.sanitize`.

The inputs take every path through the kernels. They are small, because compute-sanitizer makes a program up
to a hundred times slower. The shortest and most telling cases come first: a lent machine may be gone before
the last one. With PYTORCH_NO_CUDA_MEMORY_CACHING=1 every tensor is a separate allocation, so that accesses
outside of it are found.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import noisetilt_kernels as nt
from noisetilt_kernels import confidence_table

from .facts import run_cases
from .measure import DEVICE

ops = torch.ops.noisetilt

SECONDS = 40  # of a case; the first one loads everything
# Only one for Triton, which compiles a hundred kernels for each dtype.
DTYPES = (torch.float32,) if nt.backends()["cuda"].backend == "triton" else (torch.float32, torch.float64)
CONFIG = nt.WhiteningConfig((4, 16), ((4, 4), (2, 3)), (((16, 12), 3), ((4, 4), 2)))
RAN = "ran"


def fields(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs on the three paths of 2OS: settled by counting, ranked among neighbours, sorted."""
    noise = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = {"noise": noise, "structured": noise.cumsum(-1), "tied": noise.round()}
    return {name: field.to(DEVICE, dtype) for name, field in made.items()}


def order_stats(num_chunks: int, chunk_size: int, dtype: torch.dtype) -> str:
    lower, upper = (t.to(DEVICE, dtype) for t in confidence_table(num_chunks, chunk_size))
    for x in fields((2, num_chunks * chunk_size), dtype).values():
        ops.project_2os(x, lower, upper)
        ops.project_2os(x, upper.neg(), upper.abs() + 1)  # not monotone
    return RAN


def whiten(field: str, dtype: torch.dtype) -> str:
    nt.whiten(fields((2, 4, 16, 12), dtype)[field], CONFIG)
    return RAN


def whiten_nan(dtype: torch.dtype) -> str:
    x = fields((1, 2, 64, 64), dtype)["noise"]
    x[0, 0, 0, 0] = torch.nan
    ops.whiten(x)
    return RAN


def tile_stats(dtype: torch.dtype) -> str:
    for x in fields((2, 4, 16, 12), dtype).values():
        for tile in ([4, 4], [16, 12]):
            ops.project_tile_stats(x, tile, [4])
    return RAN


def butterflies(shape: tuple[int, int], *tiles: tuple[int, int, int], dtype: torch.dtype) -> str:
    x = fields((2, 2, *shape), dtype)["noise"]
    for height, width, steps in tiles:
        for inverse in (False, True):
            ops.butterfly(x, [height, width], steps, inverse)
    return RAN


def hadamard_transforms(dtype: torch.dtype) -> str:
    for size in (1, 2, 11, 256, 4096, 32768, 65536):
        ops.hadamard_transform(fields((3, size), dtype)["noise"], 0.5)
    return RAN


def compact_fourier(dtype: torch.dtype) -> str:
    for size in (2, 30, 4096):
        x = fields((3, size), dtype)["noise"]
        ops.compact_fourier(x)
        ops.compact_fourier(x, True)
    return RAN


def wgnc(*sizes: tuple[int, int], dtype: torch.dtype) -> str:
    for num_blocks, block_size in sizes:
        for x in fields((2, 2 * num_blocks * block_size), dtype).values():
            ops.project_wgnc(x, block_size)
            ops.project_wgnc_blocks(torch.view_as_complex(x.view(2, -1, 2)), block_size)
    return RAN


def cases(dtype: torch.dtype) -> dict[str, Callable[[], str]]:
    made: dict[str, Callable[..., str]] = {
        f"whiten, {field}": partial(whiten, field) for field in ("noise", "structured", "tied")
    }
    for num_chunks, chunk_size in ((300, 4), (64, 16), (9, 100), (1, 500), (3000, 3)):
        made[f"project_2os {num_chunks}x{chunk_size}"] = partial(order_stats, num_chunks, chunk_size)
    made |= {
        "project_tile_stats": tile_stats,
        "project_wgnc, blocks of 16": partial(wgnc, (1, 16), (3, 16), (130, 16)),
        "project_wgnc, other blocks": partial(wgnc, (9, 5), (2, 100)),
        "butterfly": partial(butterflies, (12, 20), (12, 20, 8), (4, 4, 4), (3, 2, 3), (1, 20, 5)),
        "butterfly of long tiles": partial(butterflies, (256, 256), (256, 256, 16)),
        "compact_fourier": compact_fourier,
        "hadamard_transform": hadamard_transforms,
        "whiten, NaN": whiten_nan,
    }
    name = str(dtype).removeprefix("torch.")
    return {f"{case}, {name}": partial(run, dtype=dtype) for case, run in made.items()}


def main() -> int:
    if not torch.cuda.is_available():
        print("bench.gpu.sanitize: torch finds no GPU; nothing was run")
        return 2
    return run_cases({name: case for dtype in DTYPES for name, case in cases(dtype).items()}, SECONDS)


if __name__ == "__main__":
    sys.exit(main())
