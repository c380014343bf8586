"""Weights of loaded networks: the dtype to compute in, and what a backward needs of them."""

from typing import Any

import torch
from torch.nn import Parameter


def compute_dtype(network: Any) -> torch.dtype:
    """Return the dtype in which a network of diffusers computes, which is that of its input.

    Quantised weights are stored in another dtype, such as uint8 or float8, to which an input must never be
    cast.
    """
    for module in network.modules():
        if type(module).__name__ == "GGUFLinear":  # importing the class needs the package gguf
            dtype: torch.dtype = module.compute_dtype
            return dtype
    dtype = network.dtype  # with layerwise casting, the dtype to which weights are cast
    if not _holds_latents(dtype):
        dtype = next(one.dtype for one in network.parameters() if _holds_latents(one.dtype))
    return dtype


def _holds_latents(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize > 1


def make_differentiable(network: torch.nn.Module) -> None:
    """Change what would stop gradients in a loaded network.

    Weights that were made under `torch.inference_mode`, which autograd refuses, are replaced by copies.
    Layers in NF4 do not pack their weights for the CPU, see `disable_cpu_packing`.
    """
    with torch.inference_mode(False):
        for module in network.modules():
            _leave_inference_mode(module)
            disable_cpu_packing(module)


def disable_cpu_packing(module: Any) -> None:
    """Stop a layer of bitsandbytes from packing its NF4 weights at its first call without a gradient.

    It does so on CPUs with bfloat16 instructions. The kernel of packed weights has no gradient.
    """
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False


def _leave_inference_mode(module: torch.nn.Module) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.is_inference():
            setattr(module, name, Parameter(parameter.clone(), requires_grad=False))
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_inference():
            setattr(module, name, buffer.clone())
