"""Helpers for tests of models: noise, a reward, the path of the ODE, checks of gradients and batches."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gaussian_flows import mean_of_each
from torch import Tensor

from noisetilt_kernels import sampling
from noisetilt_kernels.models import PipelineModel
from noisetilt_kernels.models.memory import _activations, plan_memory
from noisetilt_kernels.sampling.noise import ParticleNoise


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return 10 * (mean_of_each(images[:, 0]) - mean_of_each(images[:, 1]))


def noise(shape: Sequence[int], count: int = 1, seed: int = 0) -> Tensor:
    """Return the noise (count, *shape) that the samplers draw for each particle."""
    return torch.cat([ParticleNoise(seed, particle, tuple(shape)).draw() for particle in range(count)])


def ode_latents(flow: Any, prompts: Sequence[str], steps: int = 4) -> Tensor:
    """Return the latents at the end of the ODE's path from `noise(flow.shape, len(prompts))`."""
    return sampling.base(
        flow,
        redness,
        list(prompts),
        steps=steps,
        schedule=sampling.Schedule("constant", 0),
        options=sampling.SamplerOptions(micro_batch=len(prompts)),
    ).latents


def steered(model: Any, prompts: Sequence[str]) -> Tensor:
    """Return the latents of a short guided run of a flow or a one-step model."""
    options = sampling.SamplerOptions(micro_batch=len(prompts))
    if hasattr(model, "generate"):
        return sampling.wgnc(model, redness, prompts, iterations=2, lr=0.1, options=options).latents
    return sampling.ntrk(model, redness, prompts, steps=3, rho=0.5, options=options).latents


def assert_independent(flow: Any, prompts: Sequence[str], sigma: float = 0.8) -> None:
    """Assert that a batch has the velocities of each latent and prompt alone, and that prompts matter."""
    x = noise(flow.shape, len(prompts))
    with torch.no_grad():
        together = flow.velocity(x, sigma, prompts)
        for index, prompt in enumerate(prompts):
            alone = flow.velocity(x[index : index + 1], sigma, [prompt])
            torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-5)
        other = flow.velocity(x, sigma, prompts[1:] + prompts[:1])
    assert not torch.allclose(together[0], other[0], atol=1e-3)


def assert_recomputed(flow: Any, function: Callable[[Tensor], Tensor], blocks: Sequence[Any]) -> None:
    """Assert that gradient checkpointing calls each block twice, keeps less, and changes no gradient."""
    found, counts, kept = [], [], []
    calls: list[None] = []
    hooks = [block.register_forward_pre_hook(lambda *_: calls.append(None)) for block in blocks]
    x = noise(flow.shape).requires_grad_()
    for enabled in (False, True):
        flow.set_gradient_checkpointing(enabled)
        calls.clear()
        found.append(gradient(function, x.detach()))
        counts.append(len(calls))
        kept.append(kept_for_backward((flow.denoiser, flow.pipe.vae), lambda: function(x)))
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found[1], found[0])
    assert counts == [len(blocks), 2 * len(blocks)]
    assert kept[1] < 0.6 * kept[0]


def assert_planned(folder: Path, flow: PipelineModel, **options: Any) -> None:
    """Assert that the memory plan of a saved pipeline is what a guided step of its model takes.

    The prompt has the largest length.
    """
    plan = plan_memory(folder, dtype=torch.float32, **options)
    for prompt in flow.needed_prompts([""]):
        tensors = flow.placeholder_prompt().items()
        flow.prompts.put(prompt, {name: torch.ones_like(tensor) for name, tensor in tensors})
    taken, pixels = _activations(flow, False, True, 1, None)
    assert (plan.shape, plan.pixels) == (flow.shape, pixels)
    assert plan.denoiser == sum(parameter.nbytes for parameter in flow.denoiser.parameters())
    assert plan.activations == pytest.approx(taken, rel=0.02)


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
