"""Counts of what a function does: operators of PyTorch, their bytes and FLOPs, and kernels on a GPU."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .cases import Case

_aten = torch.ops.aten
_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    # attention on the CPU, which the registry leaves out
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _aten._scaled_dot_product_flash_attention
    ],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
}


class Count(TorchDispatchMode):
    """Number of operators that are no views, bytes of their inputs and results, and FLOPs.

    FLOPs are those of matrix products, convolutions and attention, by the formulas of
    `torch.utils.flop_counter`.

    Attributes:
        operators, bytes, flops: the counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.bytes = self.flops = self._paused = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing within the block."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        allocates = func._schema.name not in {"aten::empty.memory_format", "aten::detach", "aten::alias"}
        tensors = [one for one in tree_leaves((args, kwargs, out)) if isinstance(one, Tensor)]
        if tensors and not self._paused and not func.is_view and allocates:
            self.operators += 1
            self.bytes += sum(one.numel() * one.element_size() for one in tensors)
            if formula := _FORMULAS.get(func._overloadpacket):
                self.flops += formula(*args, **kwargs, out_val=out)
        return out


def gpu_kernels(function: Callable[[], object]) -> dict[str, int]:
    """Return how often a function starts each kernel, copy and fill on the GPU, by torch.profiler."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        function()
        torch.cuda.synchronize()
    on_gpu = torch.autograd.DeviceType.CUDA
    return dict(Counter(event.name for event in profiler.events() if event.device_type == on_gpu))


class Launches(NamedTuple):
    """Counts of one call of an operator.

    Attributes:
        number: kernels, copies and fills that it starts on a GPU; on the CPU operators of PyTorch, of which a
            compiled kernel is one.
        bytes: of the inputs and results of PyTorch's operators, summed. What a kernel keeps for itself does
            not count.
        kernels: names of what it starts on a GPU, and how often; empty on the CPU.
    """

    number: int
    bytes: int
    kernels: Mapping[str, int]


def count_launches(case: Case) -> Launches:
    """Count a call of an operator. It must have been called before, since the first call makes tables."""
    with Count() as count:
        result = case.call_implementation()
    kernels = gpu_kernels(case.call_implementation) if result.is_cuda else {}
    return Launches(sum(kernels.values()) if result.is_cuda else count.operators, count.bytes, kernels)
