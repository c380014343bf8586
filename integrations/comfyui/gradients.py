"""Gradients through models of ComfyUI, which makes their weights and conditions in inference mode.

Autograd refuses tensors that were made in inference mode. They are replaced by copies.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any

import comfy.model_management
import torch
from torch import Tensor
from torch.nn import Module, ModuleList, Parameter
from torch.utils.checkpoint import checkpoint


def check_attention() -> None:
    """Raise RuntimeError if the attention that ComfyUI uses has no gradient, or a wrong one."""
    management = comfy.model_management
    differentiable = management.pytorch_attention_enabled() or management.xformers_enabled()
    others = ("sage_attention_enabled", "flash_attention_enabled")  # older versions lack them
    if not differentiable or any(getattr(management, name, bool)() for name in others):
        raise RuntimeError(
            "noisetilt: the attention that ComfyUI uses has no gradient (Sage, Flash, split, sub-quadratic); "
            "start ComfyUI with --use-pytorch-cross-attention alone, or use the SVDD sampler, which needs no "
            "gradient"
        )


def make_differentiable(network: Module, device: torch.device) -> None:
    """Replace the weights and buffers that autograd refuses by copies, one after another.

    Weights on another device than `device` stay: ComfyUI copies them to it at every call.

    Raises:
        RuntimeError: a copy is refused as well.
    """
    copies: dict[int, Tensor] = {}  # tied weights stay tied
    with torch.inference_mode(False), torch.no_grad():
        for module in network.modules():
            for name, tensor in [
                *module.named_parameters(recurse=False, remove_duplicate=False),
                *module.named_buffers(recurse=False, remove_duplicate=False),
            ]:
                if not tensor.is_inference() or tensor.device != device:
                    continue
                if id(tensor) not in copies:
                    made = tensor.clone()
                    weight = isinstance(tensor, Parameter)
                    copies[id(tensor)] = Parameter(made, requires_grad=False) if weight else made
                if copies[id(tensor)].is_inference():
                    raise RuntimeError(
                        f"noisetilt: the weight {name!r} of {type(module).__name__} "
                        f"({type(tensor).__name__}) cannot be copied out of inference mode, so the model has "
                        "no gradient; load it in bfloat16 or float16, or use the SVDD sampler"
                    )
                setattr(module, name, copies[id(tensor)])


def without_inference(value: Any) -> Any:
    """Return a value with copies of the tensors that were made in inference mode, for autograd.

    Dicts, lists and tuples are copied, and so are objects with a tensor `cond`: ComfyUI's conditions.
    """
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {key: without_inference(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(without_inference(item) for item in value)
    if "cond" in getattr(value, "__dict__", ()):
        copied = copy(value)
        copied.cond = without_inference(value.cond)
        return copied
    return value


@contextmanager
def recomputed(network: Module) -> Iterator[None]:
    """Let a backward compute the activations of every block again, within the `with` statement.

    Blocks are the modules of every `ModuleList` that hold no further one. Memory then has the inputs of the
    blocks and the activations of one block.
    """
    blocks = [
        block
        for parent in network.modules()
        if isinstance(parent, ModuleList)
        for block in parent
        if not any(isinstance(child, ModuleList) for child in block.modules())
    ]
    before = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward
