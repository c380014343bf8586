"""Gradients through models of ComfyUI, which makes their weights and conditions in inference mode.

Autograd refuses tensors that were made in inference mode. They are replaced by copies. The models may write
into their tensors, because ComfyUI needs no gradient: `recomputed` allows it in their blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import Any

import comfy.cli_args
import comfy.model_management
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Module, ModuleList, Parameter, Sequential

from noisetilt_kernels.recompute import replace_forwards

GRAPH = 3.0
"""Estimated memory of a forward with a graph, relative to one without, with blocks that are recomputed."""

_WITHOUT_GRADIENT = {
    "nference tensor": "uses a tensor that ComfyUI made in inference mode",
    "inplace": "writes into a tensor that the gradient needs",
    "in-place": "writes into a tensor that the gradient needs",
    "derivative for": "has an operation without gradient",
    "automatic differentiation": "has an operation without gradient",
}
"""Parts of autograd's errors, and what they say of a model."""


def load_differentiable(patchers: Sequence[Any], memory: float) -> None:
    """Load models of ComfyUI together and prepare their weights for a gradient.

    Args:
        patchers: ComfyUI's holders of the models.
        memory: bytes that a call without gradient needs.

    Raises:
        RuntimeError: an option of ComfyUI rules out a gradient, or the weights do.
    """
    _check_attention()
    for patcher in patchers:
        if getattr(patcher, "is_dynamic", bool)():
            raise RuntimeError(
                f"noisetilt: ComfyUI moves the weights of {type(patcher.model).__name__} during a call "
                "(dynamic VRAM), which a gradient does not survive; start ComfyUI with "
                "--disable-dynamic-vram, or use the SVDD sampler, which needs no gradient"
            )
        _check_products(patcher)
    comfy.model_management.load_models_gpu(patchers, memory_required=memory * GRAPH)
    for patcher in patchers:
        make_differentiable(patcher.model, patcher.load_device)


@contextmanager
def explained(parts: str) -> Iterator[None]:
    """Say in plain words why autograd gives no gradient, within the `with` statement.

    Args:
        parts: names of the parts that the gradient passes.

    Raises:
        RuntimeError: an error of autograd.
    """
    try:
        yield
    except RuntimeError as error:
        reasons = [reason for part, reason in _WITHOUT_GRADIENT.items() if part in str(error)]
        if not reasons:
            raise
        raise RuntimeError(
            f"noisetilt: {parts} {reasons[0]}, so there is no gradient ({error}); remove patches of the "
            "model, or use the SVDD sampler, which needs no gradient"
        ) from error


def _check_attention() -> None:
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


def _check_products(patcher: Any) -> None:
    """Raise RuntimeError if ComfyUI multiplies matrices of a model in float8, which has no gradient."""
    fast = {feature.value for feature in comfy.cli_args.args.fast}
    optimizations = getattr(getattr(patcher.model, "model_config", None), "optimizations", {})
    if (
        ("fp8_matrix_mult" in fast or optimizations.get("fp8", False))
        and comfy.model_management.supports_fp8_compute(patcher.load_device)
        and any(weight.dtype == torch.float8_e4m3fn for weight in patcher.model.parameters())
    ):
        raise RuntimeError(
            f"noisetilt: ComfyUI multiplies matrices of {type(patcher.model).__name__} in float8, which has "
            "no gradient; start ComfyUI without --fast fp8_matrix_mult and load the model with weight_dtype "
            "fp8_e4m3fn instead of fp8_e4m3fn_fast, or use the SVDD sampler, which needs no gradient"
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
    """Return a value with copies of the tensors that were made in inference mode, for autograd."""
    return _mapped(value, Tensor, lambda tensor: tensor.clone() if tensor.is_inference() else tensor)


@contextmanager
def recomputed(network: Module) -> Iterator[None]:
    """Let a backward compute the activations of every block again, within the `with` statement.

    Memory then has the inputs of the blocks and the activations of one block. The blocks may write into
    their inputs and into tensors that their backward needs, as those of FLUX.1 do. A gradient passes through
    the arguments and results of a block alone: not through tensors that a patch keeps elsewhere.
    """
    with replace_forwards(list(_blocks(network)), _recompute):
        yield


def _blocks(module: Module) -> Iterator[Module]:
    """Yield the outermost modules in lists, and in sequences those with parts.

    Lists and sequences themselves are no blocks: U-Nets call the layers of a sequence one by one.
    """
    for child in module.children():
        in_list = isinstance(module, ModuleList)
        in_sequence = isinstance(module, Sequential) and any(True for _ in child.children())
        if (in_list or in_sequence) and not isinstance(child, (ModuleList, Sequential)):
            yield child
        else:
            yield from _blocks(child)


def _recompute(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the forward of a block. A backward calls it again, with the same arguments."""
    tensors: list[Tensor] = []
    given = _mapped((args, kwargs), Tensor, partial(_moved, tensors))
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
        return forward(*args, **kwargs)
    made: Any = None

    def call(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        nonlocal made
        # The block may write into its arguments.
        args, kwargs = _mapped(given, _Place, lambda place: tensors[place.number].clone())
        results: list[Tensor] = []
        made = _mapped(forward(*args, **kwargs), Tensor, partial(_moved, results))
        return tuple(results)

    results = _Recompute.apply(call, *without_inference(tensors))
    return _mapped(made, _Place, lambda place: results[place.number])


class _Recompute(torch.autograd.Function):
    """Function of tensors whose backward calls it again.

    `torch.utils.checkpoint` gives a wrong gradient, without an error, for a block that writes into a tensor
    that its backward needs. Here the backward keeps copies of such tensors.
    """

    @staticmethod
    def forward(
        context: Any, call: Callable[..., tuple[Tensor, ...]], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        context.call = call
        context.save_for_backward(*tensors)
        context.set_materialize_grads(False)
        return call(tensors)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.enable_grad(), saved_tensors_hooks(_kept, lambda tensor: tensor):
            needed = context.needs_input_grad[1:]
            leaves = [
                tensor.detach().requires_grad_(need)
                for tensor, need in zip(context.saved_tensors, needed, strict=True)
            ]
            results = context.call(leaves)
        pairs = [
            (result, gradient)
            for result, gradient in zip(results, gradients, strict=True)
            if gradient is not None and result.requires_grad
        ]
        if not pairs:
            return (None,) * (1 + len(leaves))
        found = iter(
            torch.autograd.grad(
                [result for result, _ in pairs],
                [leaf for leaf in leaves if leaf.requires_grad],
                [gradient for _, gradient in pairs],
                allow_unused=True,
            )
        )
        return None, *(next(found) if leaf.requires_grad else None for leaf in leaves)


def _kept(tensor: Tensor) -> Tensor:
    """Return what a graph keeps of a tensor: a copy, except of weights, which nothing changes."""
    base = tensor if tensor._base is None else tensor._base
    return tensor if isinstance(base, Parameter) else tensor.clone()


@dataclass(frozen=True)
class _Place:
    """Place of a tensor in a list."""

    number: int


def _moved(tensors: list[Tensor], tensor: Tensor) -> _Place:
    """Append a tensor to a list, and return its place."""
    tensors.append(tensor)
    return _Place(len(tensors) - 1)


def _mapped(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Return a value with the results of a function in the place of every entry of a kind.

    Dicts, lists, tuples and dataclasses are copied, and so are ComfyUI's conditions, which have a `cond`.
    """
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, dict):
        return {key: _mapped(item, kind, function) for key, item in value.items()}
    if type(value) in (list, tuple) or hasattr(value, "_make"):  # a NamedTuple
        items = [_mapped(item, kind, function) for item in value]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    attributes = {} if isinstance(value, type) else getattr(value, "__dict__", {})
    if "cond" in attributes or (attributes and is_dataclass(value)):
        copied = copy(value)
        vars(copied).update(_mapped(attributes, kind, function))
        return copied
    return value
