"""Operators on views: a result depends on the values of a tensor, not on its strides and its offset."""

from collections.abc import Callable

import pytest
import torch
from bits import assert_same_bits
from inputs import tables, values
from torch import Tensor

import noisetilt_kernels as nt
from noisetilt_kernels import registration
from noisetilt_kernels.backends import cpu, reference, triton
from noisetilt_kernels.backends.compiled import readable_as_complex
from noisetilt_kernels.backends.triton.launch import Launch
from noisetilt_kernels.config import Sample, resolve_preset

SIZE = 128
IMAGE = (4, 8, 16)


FLAT: dict[str, Callable[[Tensor], Tensor]] = {
    "project_wgnc": nt.project_wgnc,
    "compact_fourier": nt.compact_fourier,
    "compact_fourier inverse": lambda x: nt.compact_fourier(x, inverse=True),
    "hadamard_transform": nt.hadamard_transform,
    "project_2os": lambda x: nt.project_2os(
        x,
        *tables(
            "monotone", x.shape[-1] // 4, 4, torch.float64 if x.dtype == torch.float64 else torch.float32
        ),
    ),
}
OF_IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "whiten": nt.whiten,
    "butterfly": lambda x: nt.butterfly(x, (4, 4), 3),
    "project_tile_stats": lambda x: nt.project_tile_stats(x, (4, 4), (4,)),
}


def strided(x: Tensor, strides: tuple[int, ...], offset: int) -> Tensor:
    """Copy of x with these strides and this offset."""
    length = offset + 1 + sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True))
    return torch.zeros(length, dtype=x.dtype).as_strided(x.shape, strides, offset).copy_(x)


def from_bytes(x: Tensor, offset: int) -> Tensor:
    """Copy of x that starts `offset` bytes after a place for any number."""
    memory = bytearray(offset + x.numel() * x.element_size())
    return torch.frombuffer(memory, dtype=x.dtype, offset=offset).view(x.shape).copy_(x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "part of wider rows": lambda x: strided(x, (*(s + s // x.shape[-1] for s in x.stride()[:-1]), 1), 0),
    "part of wider rows, odd offset": lambda x: strided(
        x, (*(s + s // x.shape[-1] for s in x.stride()[:-1]), 1), 1
    ),
    "odd offset": lambda x: strided(x, x.stride(), 1),
    "every third value": lambda x: strided(x, tuple(3 * s for s in x.stride()), 2),
    "one sample, odd stride": lambda x: strided(x[:1], (x[0].numel() + 1, *x.stride()[1:]), 0),
    "one sample, odd stride and offset": lambda x: strided(x[:1], (1, *x.stride()[1:]), 1),
    "one sample, stride 0": lambda x: strided(x[:1], (0, *x.stride()[1:]), 0),
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "reversed batch": lambda x: x.flip(0).contiguous().flip(0),
    "expanded": lambda x: x[:1].expand(3, *x.shape[1:]),
    "one value, expanded": lambda x: x.flatten()[:1].view(1, *[1] * (x.dim() - 1)).expand(x.shape),
    "not aligned": lambda x: from_bytes(x, x.element_size()),
    "not aligned to its type": lambda x: from_bytes(x, 1),
}
REAL_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    **LAYOUTS,
    "negated": lambda x: torch._neg_view(-x),
    "real part": lambda x: torch.complex(x, torch.ones_like(x)).real,
    "imaginary part": lambda x: torch.complex(torch.ones_like(x), x).imag,
    "imaginary part of a conjugate": lambda x: torch.complex(torch.ones_like(x), -x).conj().imag,
}


def check(operator: Callable[[Tensor], Tensor], view: Tensor) -> None:
    assert_same_bits(operator(view), operator(view.clone(memory_format=torch.contiguous_format)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", REAL_LAYOUTS)
@pytest.mark.parametrize("name", FLAT)
def test_flat_samples(name: str, layout: str, dtype: torch.dtype) -> None:
    check(FLAT[name], REAL_LAYOUTS[layout](values("normal", (2, SIZE), dtype)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FLAT)
def test_half_precision(name: str, layout: str, dtype: torch.dtype) -> None:
    check(FLAT[name], LAYOUTS[layout](values("normal", (2, SIZE), torch.float32).to(dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", REAL_LAYOUTS)
@pytest.mark.parametrize("name", OF_IMAGES)
def test_images(name: str, layout: str, dtype: torch.dtype) -> None:
    check(OF_IMAGES[name], REAL_LAYOUTS[layout](values("normal", (2, *IMAGE), dtype)))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("layout", [*LAYOUTS, "conjugate"])
def test_spectra(layout: str, dtype: torch.dtype) -> None:
    y = torch.view_as_complex(values("normal", (2, SIZE, 2), dtype.to_real()))
    check(nt.project_wgnc_blocks, y.conj() if layout == "conjugate" else LAYOUTS[layout](y))


@pytest.mark.parametrize("upper_layout", ["transposed", "every third value", "not aligned"])
@pytest.mark.parametrize("lower_layout", ["odd offset", "part of wider rows", "negated"])
def test_tables(lower_layout: str, upper_layout: str) -> None:
    x = values("normal", (2, SIZE))
    lower, upper = tables("monotone", SIZE // 4, 4, torch.float32)
    views = REAL_LAYOUTS[lower_layout](lower), REAL_LAYOUTS[upper_layout](upper)
    assert_same_bits(nt.project_2os(x, *views), nt.project_2os(x, lower, upper))


def test_an_expanded_table() -> None:
    x = values("normal", (2, SIZE))
    lower, upper = (torch.full((1, 1), bound).expand(SIZE // 4, 4) for bound in (-0.5, 0.5))
    assert_same_bits(nt.project_2os(x, lower, upper), x.clamp(-0.5, 0.5))


# ---- other backends ----


@pytest.fixture(params=["reference", pytest.param("triton", marks=pytest.mark.slow)])
def other_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let another backend serve every call. Triton's launches must get aligned tensors, also of its own.

    Returns a number of values for the samples. It differs for each backend, because a call is prepared once
    for each shape.
    """
    backend, size = {"reference": (reference, SIZE + 32), "triton": (triton, SIZE + 64)}[request.param]
    monkeypatch.setattr(registration, "backend_for", lambda *args: backend)

    def call(launch: Launch, *tensors: Tensor) -> None:
        assert all(tensor.data_ptr() % 16 == 0 for tensor in tensors)
        run(launch, *tensors)

    run = Launch.__call__
    monkeypatch.setattr(Launch, "__call__", call)
    return size


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [*FLAT, *OF_IMAGES])
def test_other_backends(name: str, layout: str, other_size: int) -> None:
    shape = (other_size // 32, 4, 8) if name in OF_IMAGES else (other_size,)
    check((FLAT | OF_IMAGES)[name], LAYOUTS[layout](values("normal", (2, *shape))))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_spectra_on_other_backends(layout: str, other_size: int) -> None:
    y = torch.view_as_complex(values("normal", (2, other_size, 2)))
    check(nt.project_wgnc_blocks, LAYOUTS[layout](y))


class OnGpu(Tensor):
    """Tensor on the CPU that says it is on a GPU."""

    device = torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "layout", ["odd offset", "one sample, odd stride", "one sample, odd stride and offset", "not aligned"]
)
def test_the_fft_of_other_devices_gets_aligned_numbers(layout: str, dtype: torch.dtype) -> None:
    x = LAYOUTS[layout](values("normal", (2, SIZE), dtype))
    aligned = readable_as_complex(x.as_subclass(OnGpu)).as_subclass(Tensor)
    assert aligned.data_ptr() % (2 * dtype.itemsize) == 0
    assert aligned.is_contiguous()
    assert_same_bits(aligned, x)


# ---- empty batches ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_take_an_empty_batch(dtype: torch.dtype) -> None:
    """The operators return before they reach a backend, but nothing may depend on that."""
    images, rows = torch.empty(0, *IMAGE, dtype=dtype), torch.empty(0, SIZE, dtype=dtype)
    spectra = torch.empty(0, SIZE, dtype=dtype.to_complex())
    results = [
        cpu.whiten(images, resolve_preset("auto", Sample(*IMAGE), 1e-3)),
        cpu.project_tile_stats(images, (4, 4), (4,), 1e-3),
        cpu.butterfly(images, (4, 4), 3, False),
        cpu.project_2os(rows, *tables("monotone", SIZE // 4, 4, dtype)),
        cpu.hadamard_transform(rows, 1.0),
        *(cpu.compact_fourier(rows, inverse) for inverse in (False, True)),
        *(cpu.project_wgnc(rows, block_size) for block_size in (16, 8)),
        *(cpu.project_wgnc_blocks(spectra, block_size) for block_size in (16, 8)),
    ]
    assert [result.numel() for result in results] == [0] * len(results)
