"""Shortcut past autograd for calls without a gradient. It saves about 2.5 to 3.5 us, a fifth of a small call.

The figures come from `python -m bench.call_overhead`.

`torch.library.register_autograd` registers a Python kernel that prepares differentiation at every call. The
kernel registered here runs before it. If no tensor requires a gradient, it calls the implementation directly.
Otherwise it continues with PyTorch's kernel. It uses private names of PyTorch. If one of them is missing,
there is no shortcut, and everything works without it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def register(
    library: torch.library.Library, name: str, implementation: Callable[..., Tensor], num_tensors: int
) -> None:
    """Register the shortcut for operator `name` of `library`.

    Args:
        implementation: function of the operator's arguments, called below autograd.
        num_tensors: number of tensor arguments that follow the first.
    """
    try:
        plain = _plain_keysets()
        after_autograd = torch._C._after_autograd_keyset
        # The dispatch key of the autograd kernel that register_autograd makes for all devices.
        autograd_other = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradOther)
        redispatch = getattr(getattr(torch.ops, library.ns), name).default.redispatch
        below_autograd, any_requires_grad = torch._C._AutoDispatchBelowAutograd, torch._C._any_requires_grad
    except AttributeError:
        return

    def shortcut(keyset: Any, x: Tensor, *args: Any) -> Tensor:
        requires_grad = x.requires_grad or (num_tensors and any_requires_grad(*args))
        if keyset.raw_repr() in plain and not (requires_grad and torch.is_grad_enabled()):
            with below_autograd():
                return implementation(x, *args)
        return redispatch((keyset & after_autograd) | autograd_other, x, *args)

    for key in ("AutogradCPU", "AutogradCUDA"):
        library.impl(name, shortcut, key, with_keyset=True)


def _plain_keysets() -> set[int]:
    """Key sets of ordinary tensors outside any mode: only autograd comes before the operator."""
    key, keyset = torch._C.DispatchKey, torch._C.DispatchKeySet
    pairs = ((key.CPU, key.AutogradCPU), (key.CUDA, key.AutogradCUDA))
    return {(keyset(backend) | keyset(autograd)).raw_repr() for backend, autograd in pairs}
