"""Kernels that run before PyTorch's autograd kernel: forward mode, torch.func, and a shortcut.

`torch.library.register_autograd` registers a Python kernel that prepares differentiation at every call. It
knows no forward-mode differentiation: it drops tangents. Under the transforms of torch.func, such as `grad`
and `jacrev`, it raises an error. The kernel registered here runs before it.

- If a tensor has a tangent, the kernel applies a linear operator to the tangent too. For other operators it
  raises an error.
- Under a transform of torch.func, the kernel records the gradient for that transform alone.
- If no tensor requires a gradient, the kernel calls the implementation directly. This saves about 2.5 to 3.5
  us, a fifth of a small call (`python -m bench.call_overhead`).
- Otherwise it continues with PyTorch's kernel.

It uses private names of PyTorch. If one of them is missing, there is no such kernel: calls without tangents
work all the same, tangents are dropped, and torch.func takes no gradients.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch._functorch.utils
from torch import Tensor
from torch.autograd import forward_ad

_DEVICES = ("CPU", "CUDA", "XPU", "MPS", "PrivateUse1", "Meta")


def register(
    library: torch.library.Library,
    name: str,
    implementation: Callable[..., Tensor],
    *,
    num_tensors: int,
    transpose: Callable[..., Tensor] | None,
    no_gradient: str,
) -> None:
    """Register the kernel for operator `name` of `library`.

    Args:
        implementation: function of the operator's arguments, called below autograd.
        num_tensors: number of tensor arguments that follow the first.
        transpose: function of (grad, *arguments after the first) that is the gradient. Then the operator is
            linear in its first argument, and has no other tensor. None if there is no gradient.
        no_gradient: message of the error for a derivative of an operator without one.
    """
    operator = getattr(getattr(torch.ops, library.ns), name).default
    try:
        plain = _plain_keysets()
        after_autograd = torch._C._after_autograd_keyset
        # The dispatch key of the autograd kernel that register_autograd makes for all devices.
        autograd_other = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradOther)
        redispatch = operator.redispatch
        below_autograd, any_requires_grad = torch._C._AutoDispatchBelowAutograd, torch._C._any_requires_grad
        transformed = torch._C._are_functorch_transforms_active
        forward_ad._current_level  # noqa: B018  (-1 outside of forward-mode differentiation)
        forward_ad._set_fwd_grad_enabled  # noqa: B018
        recorded = _recorded(operator, transpose, no_gradient)
        single_level = torch._functorch.utils.enable_single_level_autograd_function
    except AttributeError:
        return

    def kernel(keyset: Any, x: Tensor, *args: Any) -> Tensor:
        ordinary = keyset.raw_repr() in plain
        # torch.func.jvp under torch.compile does not set the level of forward_ad. Level 0 is the only one.
        if forward_ad._current_level >= 0 or (not ordinary and transformed()):
            tensors = (x, *args[:num_tensors])
            primals, tangents = zip(*(forward_ad.unpack_dual(t, level=0) for t in tensors), strict=True)
            if any(tangent is not None for tangent in tangents):
                if transpose is None:
                    raise NotImplementedError(no_gradient)
                result, tangent = (operator(part, *args) for part in (primals[0], tangents[0]))
                return forward_ad.make_dual(result, tangent, level=0)
        requires_grad = x.requires_grad or (num_tensors and any_requires_grad(*args))
        if ordinary and not (requires_grad and torch.is_grad_enabled()):
            with below_autograd():
                return implementation(x, *args)
        if requires_grad and torch.is_grad_enabled() and transformed():
            with single_level():
                return cast(Tensor, recorded.apply(keyset, x, *args))
        return redispatch((keyset & after_autograd) | autograd_other, x, *args)

    for device in _DEVICES:
        library.impl(name, kernel, f"Autograd{device}", with_keyset=True)


def _recorded(operator: Any, transpose: Callable[..., Tensor] | None, no_gradient: str) -> Any:
    """Return the autograd function of (keyset, *arguments) for the innermost transform of torch.func."""

    class Recorded(torch.autograd.function._SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, keyset: Any, x: Tensor, *args: Any) -> Tensor:
            ctx.arguments = args
            # an outer transform may take tangents, which the forward of a function drops by default
            with torch._C._AutoDispatchBelowAutograd(), forward_ad._set_fwd_grad_enabled(True):
                result: Tensor = operator.redispatch(keyset & torch._C._after_autograd_keyset, x, *args)
            return result

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
            if transpose is None:
                raise NotImplementedError(no_gradient)
            return None, transpose(grad, *ctx.arguments), *[None] * len(ctx.arguments)

    return Recorded


def _plain_keysets() -> set[int]:
    """Key sets of ordinary tensors outside any mode: only autograd comes before the operator."""
    key, keyset = torch._C.DispatchKey, torch._C.DispatchKeySet
    pairs = ((key.CPU, key.AutogradCPU), (key.CUDA, key.AutogradCUDA))
    return {(keyset(backend) | keyset(autograd)).raw_repr() for backend, autograd in pairs}
