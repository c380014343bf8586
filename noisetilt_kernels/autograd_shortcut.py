"""A short way past autograd: an operator without anything to differentiate costs half as much to call.

`torch.library.register_autograd` makes a Python kernel that does all that differentiation may need, at every call. The
one registered here runs before it and, where no tensor requires a gradient, goes to the implementation right away;
in every other case it goes on to PyTorch's. It rests on private names of PyTorch's: where one of them is gone, there is
no shortcut, and everything works as without.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def register(
    library: torch.library.Library, name: str, implementation: Callable[..., Tensor], num_tables: int
) -> None:
    """Makes calls of operator `name` of `library` short where they can be.

    Args:
        implementation: what to call with the operator's arguments, below autograd.
        num_tables: how many arguments after the first are tensors as well.
    """
    try:
        plain = _plain_keysets()
        after_autograd = torch._C._after_autograd_keyset
        # Here the autograd kernel is found that register_autograd makes for all devices.
        autograd_other = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradOther)
        redispatch = getattr(getattr(torch.ops, library.ns), name).default.redispatch
        below_autograd, any_requires_grad = torch._C._AutoDispatchBelowAutograd, torch._C._any_requires_grad
    except AttributeError:
        return

    def shortcut(keyset: Any, x: Tensor, *args: Any) -> Tensor:
        requires_grad = x.requires_grad or (num_tables and any_requires_grad(*args))
        if keyset.raw_repr() in plain and not (requires_grad and torch.is_grad_enabled()):
            with below_autograd():
                return implementation(x, *args)
        return redispatch((keyset & after_autograd) | autograd_other, x, *args)

    for key in ("AutogradCPU", "AutogradCUDA"):
        library.impl(name, shortcut, key, with_keyset=True)


def _plain_keysets() -> set[int]:
    """Of tensors of no special kind outside every mode: on the way to an operator there is nothing but autograd."""
    key, keyset = torch._C.DispatchKey, torch._C.DispatchKeySet
    pairs = ((key.CPU, key.AutogradCPU), (key.CUDA, key.AutogradCUDA))
    return {(keyset(backend) | keyset(autograd)).raw_repr() for backend, autograd in pairs}
