"""Registration of the public operators with PyTorch: dispatch to a backend, fake tensors and gradients.

Each operator is defined by a function that checks the arguments and returns a `Plan`. The same function
serves the fake (meta) implementation, so `torch.compile` reports a mistake with the same message, unless the
size of a sample is symbolic.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import autograd_shortcut
from ._ops import add_op_namespace_prefix, ops
from .backends import backend_for, cpu, cuda, forced
from .backends import library as _library  # noqa: F401  (defines the operators)
from .backends.tables import Extents
from .config import BATCHED_RANKS

_CALLS_KEPT = 256
_HASHABLE = (int, float, bool, str)

_NOT_DENSE_KEYS = (
    "SparseCPU",
    "SparseCUDA",
    "SparseCsrCPU",
    "SparseCsrCUDA",
    "MkldnnCPU",
    "NestedTensorCPU",
    "NestedTensorCUDA",
    "AutogradNestedTensor",  # of nested tensors with the layout torch.jagged
)
"""Dispatch keys of tensors that are not arrays of values in memory."""

NOT_DENSE = "tensors must be dense, got a sparse, nested or MKL-DNN tensor"

_registry = torch.library.Library(ops.name, "IMPL")


class Plan(NamedTuple):
    """Result of checking the arguments of a call: how to run it."""

    sample_shape: tuple[int, ...]
    run: Callable[..., Tensor]
    """Function of (backend, samples, *tensors) that returns samples, contiguous (B, *sample_shape)."""
    tile_size: int = 0
    """See `Extents`."""
    block_size: int = 0


class Operator(NamedTuple):
    """A registered operator."""

    implementation: Callable[..., Tensor]
    """Function of the operator's arguments, below autograd."""
    calls: dict[Any, Callable[..., Tensor]]
    """Prepared calls by the metadata of their arguments."""


OPERATORS: dict[str, Operator] = {}
"""Operators by name. Names that begin with an underscore are not public."""


@contextmanager
def served_by(backend: ModuleType) -> Iterator[None]:
    """Let one backend alone serve every operator within the block. It refuses calls with BackendError."""

    def forget_calls() -> None:
        for operator in OPERATORS.values():
            operator.calls.clear()

    with forced(backend):
        forget_calls()
        try:
            yield
        finally:
            forget_calls()


def register(
    name: str,
    make_plan: Callable[..., Plan],
    *,
    num_tensors: int = 0,
    transpose: Callable[..., Tensor] | None = None,
) -> None:
    """Implement operator `name`.

    Args:
        make_plan: function of the operator's arguments that checks them and returns a plan. A plan depends
            only on the metadata of the tensors and on the other arguments, and is kept for later calls.
        num_tensors: number of tensor arguments that follow x.
        transpose: function of (grad, *arguments after x) that applies the transpose of an operator that is
            linear in x. It is the gradient; the forward-mode derivative is the operator itself. None for a
            projection, which has no gradient.
    """
    calls: dict[Any, Callable[..., Tensor]] = {}

    def implementation(x: Tensor, *args: Any) -> Tensor:
        key = (
            x.shape,
            x.dtype,
            x.device,
            # as text, a zero differs from the negative zero and from False
            *[arg or str(arg) if type(arg) in _HASHABLE else _metadata(arg) for arg in args],
        )
        call = calls.get(key)
        if call is None:
            call = _prepare(name, make_plan(x, *args), x)
            if len(calls) == _CALLS_KEPT:
                calls.clear()
            calls[key] = call
        return call(x, *args[:num_tensors])

    def check(x: Tensor, *args: Any) -> None:
        if not _is_symbolic(x):
            make_plan(x, *args)

    def fake(x: Tensor, *args: Any) -> Tensor:
        check(x, *args)
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    OPERATORS[name] = Operator(implementation, calls)
    _registry.impl(name, implementation, "CompositeExplicitAutograd")
    autograd_shortcut.register(
        _registry,
        name,
        implementation,
        num_tensors=num_tensors,
        transpose=transpose,
        no_gradient=_no_gradient(name),
    )
    torch.library.register_fake(add_op_namespace_prefix(name), fake, lib=_registry)
    _register_autograd(name, transpose)
    torch.library.register_vmap(
        add_op_namespace_prefix(name), _vmapped(name, check, num_tensors), lib=_registry
    )

    def refuse(x: Tensor, *args: Any) -> Tensor:
        raise TypeError(f"{public_name(name)}: {NOT_DENSE}")

    for key in _NOT_DENSE_KEYS:
        _registry.impl(name, refuse, key)


def _register_autograd(name: str, transpose: Callable[..., Tensor] | None) -> None:
    """Register the gradient of operator `name`; without a transpose, the error that there is none."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.arguments = inputs[1:]

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        if transpose is None:
            raise NotImplementedError(_no_gradient(name, ", or call it under torch.no_grad()"))
        return transpose(grad, *ctx.arguments), *[None] * len(ctx.arguments)

    torch.library.register_autograd(
        add_op_namespace_prefix(name), backward, setup_context=setup_context, lib=_registry
    )


def _vmapped(name: str, check: Callable[..., None], num_tensors: int) -> Callable[..., tuple[Tensor, int]]:
    """Return the rule by which `torch.func.vmap` calls operator `name` once for all its samples.

    check: function of the operator's arguments. It is called with a tensor of the shape that the user sees,
        and so raises errors and warns of shapes by that shape.
    """
    operator = getattr(ops, name)

    def rule(info: Any, in_dims: Sequence[Any], x: Tensor, *args: Any) -> tuple[Tensor, int]:
        own, tables = in_dims[0], in_dims[1 : 1 + num_tensors]
        rank = x.dim() - (own is not None)
        if any(dim is not None for dim in tables) or not 1 <= rank <= 5:
            parts = [
                [arg] * info.batch_size if dim is None else arg.unbind(dim)
                for arg, dim in zip((x, *args[:num_tensors]), (own, *tables), strict=True)
            ]
            results = [operator(*tensors, *args[num_tensors:]) for tensors in zip(*parts, strict=True)]
            return torch.stack(results), 0
        samples = x.movedim(own, 0)
        check(samples.new_empty(samples.shape[1:]), *args)
        batch = samples.flatten(0, 1) if rank in BATCHED_RANKS else samples
        if batch.dim() == 4:
            batch = batch.unsqueeze(2)  # videos of one frame, a shape that is never a warning
        return operator(batch, *args).reshape(samples.shape), 0

    return rule


def _prepare(op: str, plan: Plan, x: Tensor) -> Callable[..., Tensor]:
    """Return the plan as a function of any tensor of x's shape, dtype and device, and the other tensors.

    The function converts x to contiguous float32 or float64 samples, unless the kernels read and write
    float16 and bfloat16. Its result has x's dtype and shape.
    """
    if x.numel() == 0:
        return lambda x, *tensors: torch.empty_like(x, memory_format=torch.contiguous_format)
    sample_shape, run, tile_size, block_size = plan
    backend = backend_for(op, x.device, Extents(math.prod(sample_shape), tile_size, block_size))
    reshaped = x.shape[1:] != sample_shape
    half, lazy = x.dtype in (torch.float16, torch.bfloat16), x.dtype.is_complex
    half &= not (backend is cuda and op in cuda.SERVES_HALF)

    def call(x: Tensor, *tensors: Tensor) -> Tensor:
        samples = x.float() if half else x.resolve_conj() if lazy else x
        if not samples.is_contiguous():
            samples = samples.contiguous()
        if reshaped:
            samples = samples.view(-1, *sample_shape)
        result = run(backend, samples, *tensors)
        if half:
            result = result.to(x.dtype)
        return result.view_as(x) if reshaped else result

    small = backend is cpu and cpu.suits_one_thread(x.numel(), math.prod(sample_shape))
    return cpu.without_openmp(call) if small else call


def _is_symbolic(x: Tensor) -> bool:
    """Return True if the shape of a sample is symbolic, under torch.compile or torch.export.

    The checks would fix it. They follow when the operator runs.
    """
    shape = x.shape[1:] if x.dim() in BATCHED_RANKS else x.shape
    return any(isinstance(size, torch.SymInt) for size in shape)


def public_name(name: str) -> str:
    """Return the name of the function that calls operator `name`."""
    return name.strip("_").removesuffix("_config")


def _no_gradient(name: str, more: str = "") -> str:
    return f"{public_name(name)} has no gradient: it is a projection. Pass x.detach(){more}."


def _metadata(arg: Any) -> Any:
    """Return the part of an argument that a plan may depend on, as a hashable value."""
    if type(arg) is list:
        return tuple(arg)
    return (arg.shape, arg.stride(), arg.dtype, arg.device) if isinstance(arg, Tensor) else arg
