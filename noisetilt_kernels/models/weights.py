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


def leave_inference_mode(network: torch.nn.Module) -> None:
    """Replace weights that were made under `torch.inference_mode`, which autograd refuses, by copies."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_inference():
                setattr(module, name, Parameter(parameter.clone(), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_inference():
                setattr(module, name, buffer.clone())
