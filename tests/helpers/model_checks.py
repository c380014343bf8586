"""Helpers for tests of models: noise, a reward, checks of gradients, size of the graph."""

from collections.abc import Callable, Sequence

import pytest
import torch
from gaussian_flows import mean_of_each
from torch import Tensor

from noisetilt_kernels.sampling.noise import ParticleNoise


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return 10 * (mean_of_each(images[:, 0]) - mean_of_each(images[:, 1]))


def noise(shape: Sequence[int], count: int = 1, seed: int = 0) -> Tensor:
    """Return the noise (count, *shape) that the samplers draw for each particle."""
    return torch.cat([ParticleNoise(seed, particle, tuple(shape)).draw() for particle in range(count)])


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the gradient of a sum of function(x) with fixed random weights."""
    x = x.clone().requires_grad_()
    values = function(x)
    return torch.autograd.grad((_weights(values) * values).sum(), x)[0]


def assert_gradient(function: Callable[[Tensor], Tensor], x: Tensor, step: float, tolerance: float) -> None:
    """Assert that the gradient equals central differences along three random directions."""
    slopes = gradient(function, x)
    for seed in range(3):
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(10 + seed), dtype=x.dtype)
        with torch.no_grad():
            difference = function(x + step * direction) - function(x - step * direction)
        change = (_weights(difference) * difference).sum() / (2 * step)
        assert float((slopes * direction).sum()) == pytest.approx(float(change), rel=tolerance)


def _weights(values: Tensor) -> Tensor:
    return torch.randn(values.shape, generator=torch.Generator().manual_seed(1), dtype=values.dtype)


def kept_for_backward(networks: Sequence[torch.nn.Module], forward: Callable[[], Tensor]) -> int:
    """Return the bytes that the graph of `forward` keeps, without the networks' weights."""
    weights = {parameter.data_ptr() for network in networks for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    assert output.requires_grad
    return sum(kept.values())
