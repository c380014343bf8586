"""Stages of W that are operators of the CUDA library, compared with the reference on the CPU."""

import pytest
import torch
from bits import assert_same_bits
from device import (
    DEVICE,
    OF_MODELS,
    REAL,
    SMALL,
    check,
    expected_mixing_domains,
    expected_project,
    only_cuda,
    ops,
    samples,
)
from inputs import DISTRIBUTIONS, noise, values
from torch import Tensor

from bench.inputs import STRUCTURED, power_law
from noisetilt_kernels.backends import cuda
from noisetilt_kernels.config import WhiteningConfig, flatten_mixing

NAMES = tuple(DISTRIBUTIONS)
SOME = ("normal", "1/k", "few values", "everything")

pytestmark = only_cuda


def tables(x: Tensor, config: WhiteningConfig) -> Tensor:
    """Return the argument of `_project_` after x."""
    sizes = config.chunk_sizes
    return cuda._projections(x, sizes, sizes, config.tile_sizes, config.alpha).handle


def project(x: Tensor, config: WhiteningConfig) -> Tensor:
    result = x.clone()
    ops._project_(result, tables(x, config))
    return result


def project_mixing_domains(x: Tensor, config: WhiteningConfig) -> Tensor:
    result = x.clone()
    ops._project_mixing_domains_(result, tables(x, config), flatten_mixing(config))
    return result


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", SMALL)
def test_project(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    config, x = SMALL[shape], samples(NAMES, shape, dtype)
    check(lambda x: project(x, config), lambda x: expected_project(x, config), x, NAMES)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", [shape for shape in SMALL if SMALL[shape].mixing])
def test_project_mixing_domains(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    config, x = SMALL[shape], samples(NAMES, shape, dtype)
    check(lambda x: project_mixing_domains(x, config), lambda x: expected_mixing_domains(x, config), x, NAMES)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", OF_MODELS)
def test_project_latents_of_models(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    config, x = OF_MODELS[shape], samples(SOME, shape, dtype)
    check(lambda x: project(x, config), lambda x: expected_project(x, config), x, SOME)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", [shape for shape in OF_MODELS if shape[0] < 100])
def test_project_mixing_domains_of_latents_of_models(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    config, x = OF_MODELS[shape], samples(SOME[:2], shape, dtype)
    check(
        lambda x: project_mixing_domains(x, config), lambda x: expected_mixing_domains(x, config), x, SOME[:2]
    )


def test_project_mixing_domains_of_a_video() -> None:
    shape = (336, 60, 104)
    config, x = OF_MODELS[shape], torch.stack([values("normal", shape), power_law(1.0, shape).float()])
    check(
        lambda x: project_mixing_domains(x, config),
        lambda x: expected_mixing_domains(x, config),
        x,
        ("normal", "1/k"),
    )


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("name", STRUCTURED)
def test_structured_latents(name: str, dtype: torch.dtype) -> None:
    config, x = OF_MODELS[16, 64, 64], torch.stack([STRUCTURED[name](seed).to(dtype) for seed in (0, 1)])
    check(
        lambda x: project(x, config),
        lambda x: expected_project(x, config),
        x,
        ("seed 0", "seed 1"),
        "project",
    )
    check(
        lambda x: project_mixing_domains(x, config),
        lambda x: expected_mixing_domains(x, config),
        x,
        ("seed 0", "seed 1"),
        "mixing domains",
    )


@pytest.mark.parametrize("batch", range(1, 10))
def test_every_small_batch(batch: int) -> None:
    config, x = OF_MODELS[16, 64, 64], noise(batch)
    x[batch // 2] = power_law(1.0).float()
    names = [f"sample {k}" for k in range(batch)]
    check(lambda x: project(x, config), lambda x: expected_project(x, config), x, names)


def test_many_tiny_samples() -> None:
    config, x = SMALL[2, 8, 8], samples(NAMES, (2, 8, 8)).repeat(5000, 1, 1, 1)
    expected = expected_mixing_domains(expected_project(x[: len(NAMES)], config), config)
    result = project_mixing_domains(project(x.to(DEVICE), config), config).unflatten(0, (5000, -1)).cpu()
    assert_same_bits(result[0], expected)
    assert_same_bits(result, result[:1].expand_as(result).contiguous(), "among the repetitions")


@pytest.mark.parametrize("dtype", REAL)
def test_a_sample_that_is_not_finite(dtype: torch.dtype) -> None:
    x = values("normal", (5, 3, 100, 70), dtype)
    x[1, 2, 99, 69], x[3, 0, 50, 7], x[4, 0, 0, 0] = torch.inf, torch.nan, -torch.inf
    expected = x.clone()
    expected[[1, 3, 4]] = torch.nan
    assert_same_bits(ops._finite_or_nan(x.to(DEVICE)).cpu(), expected)
