"""Run every kernel once or twice on small inputs, for compute-sanitizer: `python -m bench.gpu.sanitize`.

The inputs take every path through the kernels. They are small, because compute-sanitizer makes a program up
to a hundred times slower. With PYTORCH_NO_CUDA_MEMORY_CACHING=1 every tensor is a separate allocation, so
that accesses outside of it are found.
"""

import sys

import torch
from torch import Tensor

import noisetilt_kernels as nt
from noisetilt_kernels import confidence_table

ops = torch.ops.noisetilt

# Only one for Triton, which compiles a hundred kernels for each dtype.
DTYPES = (torch.float32,) if nt.backends()["cuda"].backend == "triton" else (torch.float32, torch.float64)


def fields(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs on the three paths of 2OS: settled by counting, ranked among neighbours, sorted."""
    noise = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = {"noise": noise, "structured": noise.cumsum(-1), "tied": noise.round()}
    return {name: field.to("cuda", dtype) for name, field in made.items()}


def order_stats(dtype: torch.dtype) -> None:
    for num_chunks, chunk_size in ((300, 4), (64, 16), (3000, 3), (9, 100), (1, 500)):
        lower, upper = (t.to("cuda", dtype) for t in confidence_table(num_chunks, chunk_size))
        for x in fields((2, num_chunks * chunk_size), dtype).values():
            ops.project_2os(x, lower, upper)
            ops.project_2os(x, upper.neg(), upper.abs() + 1)  # not monotone


def samples(dtype: torch.dtype) -> None:
    config = nt.WhiteningConfig((4, 16), ((4, 4), (2, 3)), (((16, 12), 3), ((4, 4), 2)))
    for x in fields((2, 4, 16, 12), dtype).values():
        nt.whiten(x, config)
        ops.project_tile_stats(x, [4, 4], [4])
        ops.project_tile_stats(x, [16, 12], [4])
    x = fields((1, 2, 64, 64), dtype)["noise"]
    x[0, 0, 0, 0] = torch.nan
    ops.whiten(x)


def transforms(dtype: torch.dtype) -> None:
    x = fields((2, 2, 12, 20), dtype)["noise"]
    for tile, steps in (([12, 20], 8), ([4, 4], 4), ([3, 2], 3), ([1, 20], 5)):
        for inverse in (False, True):
            ops.butterfly(x, tile, steps, inverse)
    ops.butterfly(fields((1, 1, 256, 256), dtype)["noise"], [256, 256], 16)
    for size in (1, 2, 11, 256, 4096, 32768, 65536):
        ops.hadamard_transform(fields((3, size), dtype)["noise"], 0.5)
    for size in (2, 30, 4096):
        x = fields((3, size), dtype)["noise"]
        ops.compact_fourier(x)
        ops.compact_fourier(x, True)


def wgnc(dtype: torch.dtype) -> None:
    for num_blocks, block_size in ((1, 16), (3, 16), (130, 16), (9, 5), (2, 100)):
        for x in fields((2, 2 * num_blocks * block_size), dtype).values():
            ops.project_wgnc(x, block_size)
            ops.project_wgnc_blocks(torch.view_as_complex(x.view(2, -1, 2)), block_size)


def main() -> int:
    if not torch.cuda.is_available():
        print("bench.gpu.sanitize: torch finds no GPU; nothing was run")
        return 2
    for dtype in DTYPES:
        for part in (order_stats, samples, transforms, wgnc):
            part(dtype)
            torch.cuda.synchronize()
            print(f"{part.__name__}, {dtype}: ran", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
