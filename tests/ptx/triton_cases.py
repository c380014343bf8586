"""Run Triton's kernels from their PTX, and compare them with the reference bit by bit.

    python -m ptx.triton_cases CAPABILITY DTYPE [--full] [--plant NAME]

Prints a line of JSON for every case: its name, and the difference, a fault, or null. It is a program of its
own, because tests set TRITON_INTERPRET, after which no kernel is compiled.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator

import torch
from bits import assert_same_bits
from inputs import tables, values
from torch import Tensor

from bench.inputs import FLUX, gaussian, power_law
from noisetilt_kernels import python_ref
from noisetilt_kernels.backends import reference
from noisetilt_kernels.backends import triton as operators
from noisetilt_kernels.config import Sample, resolve_preset

from .plants import replaced
from .triton_device import triton_device

Case = tuple[str, Callable[[], Tensor], Callable[[], Tensor]]  # name, operator, reference

PLANTS = {
    # pattern, replacement, number of the match that is changed
    "unknown rounding": (r"add\.rn\.f32", "add.rz.f32", 0),
    "unknown opcode": (r"add\.rn\.f32", "wadd.rn.f32", 0),
    "other operation": (r"sub\.rn\.f32", "add.rn.f32", 0),
    "barrier": (r"bar\.sync\s+0;", "", 1),
    "vector": (r"(ld\.global\.v4\.b32\s+\{ )(%r\d+), (%r\d+)", r"\1\3, \2", 0),
    "predicate": (r"@%p\d+ (st\.global)", r"\1", 0),
    "comparison": (r"setp\.lt\.", "setp.le.", 0),
    "address": (r"(st\.global\S*\s+\[ %rd\d+ \+ )0( \])", r"\g<1>4\2", 0),
}
"""Faults to plant into the PTX of every kernel."""


def same(
    name: str, operator: Callable[..., Tensor], expected: Callable[..., Tensor], x: Tensor, *rest: object
) -> Case:
    return name, lambda: operator(x.clone(), *rest), lambda: expected(x, *rest)


def whiten(shape: tuple[int, int, int], preset: str, dtype: torch.dtype) -> Iterator[Case]:
    config = resolve_preset(preset, Sample(*shape), 1e-3)
    for name, field in (("noise", gaussian(shape)), ("1/k", power_law(1.0, shape))):
        yield same(
            f"whiten {shape}, {name}", operators.whiten, reference.whiten, field.to(dtype)[None], config
        )


def project_2os(num_chunks: int, chunk_size: int, dtype: torch.dtype) -> Iterator[Case]:
    for name in ("normal", "few values", "everything"):
        x = values(name, (1, num_chunks * chunk_size), dtype)
        pair = tables("typical", num_chunks, chunk_size, dtype)
        yield same(
            f"2OS {num_chunks}x{chunk_size}, {name}", operators.project_2os, python_ref.project_2os, x, *pair
        )


def small_cases(dtype: torch.dtype) -> Iterator[Case]:
    yield from whiten((4, 16, 16), "auto", dtype)
    for num_chunks, chunk_size in ((300, 4), (75, 16), (40, 5), (7, 1), (3, 50), (1, 64), (2100, 2)):
        yield from project_2os(num_chunks, chunk_size, dtype)
    for shape, tile in (((4, 16, 16), (4, 4)), ((3, 12, 8), (3, 4)), ((1, 64, 64), (64, 64))):
        yield same(
            f"tile statistics {shape}, {tile}",
            operators.project_tile_stats,
            reference.project_tile_stats,
            values("normal", (2, *shape), dtype),
            tile,
            (4,) if shape != (1, 64, 64) else (1,),
            1e-3,
        )
    for inverse in (False, True):
        for size in (1000, 4096):
            yield same(
                f"compact Fourier {size}, inverse {inverse}",
                operators.compact_fourier,
                reference.compact_fourier,
                values("normal", (3, size), dtype),
                inverse,
            )
        for shape, tile, steps in (
            ((2, 64, 64), (64, 64), 12),
            ((3, 16, 16), (8, 8), 6),
            ((2, 60, 104), (60, 104), 13),
        ):
            yield same(
                f"butterfly {tile}, {steps} steps, inverse {inverse}",
                operators.butterfly,
                reference.butterfly,
                values("normal", (2, *shape), dtype),
                tile,
                steps,
                inverse,
            )
    for size in (16, 1000, 4096):
        x = values("normal", (3, size), dtype)
        yield same(f"Hadamard {size}", operators.hadamard_transform, reference.hadamard_transform, x, 0.3)
    for block_size in (16, 5, 100):
        for size in (2 * block_size * 9, *([2048] if block_size == 16 else [])):
            yield same(
                f"WGNC {size}, blocks of {block_size}",
                operators.project_wgnc,
                reference.project_wgnc,
                values("normal", (2, size), dtype),
                block_size,
            )
        y = torch.view_as_complex(values("few values", (1, block_size * 21, 2), dtype))
        yield same(
            f"WGNC blocks of {block_size}",
            operators.project_wgnc_blocks,
            reference.project_wgnc_blocks,
            y,
            block_size,
        )


def full_cases(dtype: torch.dtype) -> Iterator[Case]:
    yield from whiten(FLUX, "flux", dtype)
    for num_chunks, chunk_size in ((16_384, 4), (4096, 16)):
        yield from project_2os(num_chunks, chunk_size, dtype)


def difference(
    operator: Callable[[], Tensor], expected: Callable[[], Tensor], fault: type[Exception]
) -> str | None:
    try:
        assert_same_bits(operator(), expected())
    except (AssertionError, fault) as error:
        return f"{type(error).__name__}: {error}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("capability", type=int)
    parser.add_argument("dtype", choices=["float32", "float64"])
    parser.add_argument("--full", action="store_true", help="samples of full size, which take minutes")
    parser.add_argument("--plant", choices=PLANTS, help="fault to plant; ends when it is found")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    cases = full_cases if arguments.full else small_cases
    with tempfile.TemporaryDirectory() as cache, triton_device(arguments.capability, cache) as device:
        if arguments.plant:
            pattern, replacement, number = PLANTS[arguments.plant]
            device.edit = lambda ptx: replaced(ptx, pattern, replacement, number)
        for name, operator, expected in cases(dtype):
            found = difference(operator, expected, device.interpreter.Fault)
            print(json.dumps({"case": name, "difference": found}), flush=True)
            if arguments.plant and found:
                break


if __name__ == "__main__":
    main()
