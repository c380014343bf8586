"""The stages of W on the GPU against the reference on the CPU: tile statistics, project, mix, and W around its FFTs."""

import pytest
import torch
from bits import assert_same_bits
from device import DEVICE, REAL, assert_agrees, check, ops, samples
from inputs import DISTRIBUTIONS, STRUCTURED, noise, power_law, values
from torch import Tensor

import noisetilt_kernels as nt
from noisetilt_kernels import python_ref
from noisetilt_kernels.backends import native
from noisetilt_kernels.backends.reference import _bounds_like
from noisetilt_kernels.config import Sample, WhiteningConfig, resolve_preset

NAMES = tuple(DISTRIBUTIONS)
SOME = ("normal", "1/k", "few values", "everything")

SMALL = {  # shape: configuration
    (2, 8, 8): WhiteningConfig((4, 16), ((2, 2), (4, 4)), (((8, 8), 6), ((4, 4), 4))),
    (4, 16, 16): WhiteningConfig((4, 16), ((4, 4), (8, 8), (16, 16)), (((16, 16), 8), ((8, 8), 3), ((4, 16), 2))),
    (3, 12, 8): WhiteningConfig((2, 3), ((3, 4), (1, 2), (12, 8)), (((12, 8), 7), ((6, 2), 2))),
    (1, 1, 256): WhiteningConfig((4, 16), ((1, 16), (1, 64)), (((1, 256), 8), ((1, 64), 6))),
    (5, 4, 6): WhiteningConfig((3, 40), ((2, 3), (4, 2)), (((4, 6), 3),)),
    (2, 7, 5): WhiteningConfig((2, 7), ((7, 5), (1, 5), (7, 1)), ()),
    (1, 48, 20): WhiteningConfig((1, 2, 4), ((48, 20), (24, 10)), (((48, 20), 10), ((6, 4), 3))),
    (6, 64, 64): WhiteningConfig((4, 16), ((2, 2),), (((2, 2), 2),)),
}
OF_MODELS = {  # FLUX, FLUX at 1360x768, SDXL, SANA, Z-Image, a flat sample, Wan
    shape: resolve_preset("auto", Sample(*shape, flat=shape[:2] == (1, 1)), 1e-4)
    for shape in (
        (16, 64, 64),
        (16, 96, 170),
        (4, 128, 128),
        (32, 32, 32),
        (16, 128, 128),
        (1, 1, 65_536),
        (336, 60, 104),
    )
}


def arguments(x: Tensor, config: WhiteningConfig, values: bool = True) -> tuple:
    """What `_project_` takes after x."""
    sizes = config.chunk_sizes
    return native._projection(x, sizes if values else (), sizes, config.tile_sizes, config.alpha)


def project(x: Tensor, config: WhiteningConfig) -> Tensor:
    result = x.clone()
    ops._project_(result, *arguments(x, config))
    return result


def mix(x: Tensor, config: WhiteningConfig) -> Tensor:
    result = x.clone()
    ops._mix_(result, *arguments(x, config), [n for tile, repeats in config.mixing for n in (*tile, repeats)])
    return result


def expected_project(x: Tensor, config: WhiteningConfig) -> Tensor:
    return python_ref.project(x, config.chunk_sizes, config.tile_sizes, _bounds_like(x, config.alpha))


def expected_mix(x: Tensor, config: WhiteningConfig) -> Tensor:
    for tile, repeats in config.mixing:
        for _ in range(repeats):
            x = expected_project(python_ref.butterfly(x, tile, 1), config)
        x = python_ref.butterfly_inverse(x, tile, repeats)
    return x


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", SMALL)
def test_tile_stats(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    config, x = SMALL[shape], samples(NAMES, shape, dtype)
    for tile in config.tile_sizes:
        check(
            lambda x, tile=tile: ops.project_tile_stats(x, tile, config.chunk_sizes),
            lambda x, tile=tile: python_ref.project_tile_stats(x, tile, config.chunk_sizes, _bounds_like(x, 1e-4)),
            x,
            NAMES,
            f"{tile}",
        )


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", SMALL)
def test_project(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    config, x = SMALL[shape], samples(NAMES, shape, dtype)
    check(lambda x: project(x, config), lambda x: expected_project(x, config), x, NAMES)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", [shape for shape in SMALL if SMALL[shape].mixing])
def test_mix(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    config, x = SMALL[shape], samples(NAMES, shape, dtype)
    check(lambda x: mix(x, config), lambda x: expected_mix(x, config), x, NAMES)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", OF_MODELS)
def test_project_latents_of_models(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    config, x = OF_MODELS[shape], samples(SOME, shape, dtype)
    check(lambda x: project(x, config), lambda x: expected_project(x, config), x, SOME)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", [shape for shape in OF_MODELS if shape[0] < 100])
def test_mix_latents_of_models(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    config, x = OF_MODELS[shape], samples(SOME[:2], shape, dtype)
    check(lambda x: mix(x, config), lambda x: expected_mix(x, config), x, SOME[:2])


def test_mix_a_video() -> None:
    shape = (336, 60, 104)
    config, x = OF_MODELS[shape], torch.stack([values("normal", shape), power_law(1.0, shape).float()])
    check(lambda x: mix(x, config), lambda x: expected_mix(x, config), x, ("normal", "1/k"))


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("name", STRUCTURED)
def test_structured_latents(name: str, dtype: torch.dtype) -> None:
    config, x = OF_MODELS[16, 64, 64], torch.stack([STRUCTURED[name](seed).to(dtype) for seed in (0, 1)])
    check(lambda x: project(x, config), lambda x: expected_project(x, config), x, ("seed 0", "seed 1"), "project")
    check(lambda x: mix(x, config), lambda x: expected_mix(x, config), x, ("seed 0", "seed 1"), "mix")


@pytest.mark.parametrize("batch", range(1, 10))
def test_every_small_batch(batch: int) -> None:
    config, x = OF_MODELS[16, 64, 64], noise(batch)
    x[batch // 2] = power_law(1.0).float()
    names = [f"sample {k}" for k in range(batch)]
    check(lambda x: project(x, config), lambda x: expected_project(x, config), x, names)


def test_many_tiny_samples() -> None:
    config, x = SMALL[2, 8, 8], samples(NAMES, (2, 8, 8)).repeat(5000, 1, 1, 1)
    expected = expected_mix(expected_project(x[: len(NAMES)], config), config)
    result = mix(project(x.to(DEVICE), config), config).unflatten(0, (5000, -1)).cpu()
    assert_same_bits(result[0], expected)
    assert_same_bits(result, result[:1].expand_as(result).contiguous(), "among the repetitions")


@pytest.mark.parametrize("dtype", REAL)
def test_a_sample_that_is_not_finite(dtype: torch.dtype) -> None:
    x = values("normal", (5, 3, 100, 70), dtype)
    x[1, 2, 99, 69], x[3, 0, 50, 7], x[4, 0, 0, 0] = torch.inf, torch.nan, -torch.inf
    expected = x.clone()
    expected[[1, 3, 4]] = torch.nan
    assert_same_bits(ops._finite_or_nan(x.to(DEVICE)).cpu(), expected)


@pytest.mark.parametrize("name", ["noise", "1/k", "sinusoids", "repeated channel", "sparse spikes", "constant", "zero"])
@pytest.mark.parametrize("dtype", REAL)
def test_whiten_is_its_stages(name: str, dtype: torch.dtype) -> None:
    """W of the GPU has the bits of the reference around the GPU's own FFTs."""
    made = {"noise": noise(1)[0], "constant": torch.full((16, 64, 64), 0.7), "zero": torch.zeros(16, 64, 64)}
    x = (made[name] if name in made else STRUCTURED[name](0)).to(dtype)[None]
    config = OF_MODELS[16, 64, 64]
    y = ops.compact_fourier(expected_project(x, config).flatten(1).to(DEVICE)).cpu().view_as(x)
    y = ops.compact_fourier(expected_project(y, config).flatten(1).to(DEVICE), True).cpu().view_as(x)
    assert_agrees(nt.whiten(x.to(DEVICE), config), expected_mix(y, config))
