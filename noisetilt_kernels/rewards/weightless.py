"""Loading of rewards without weights, to count their memory with torch's fake tensors.

Importing this module does not import transformers.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

AnyModule = TypeVar("AnyModule", bound=nn.Module)

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}
"""Dtypes by their names in safetensors files."""

_DEVICE: ContextVar[torch.device | None] = ContextVar("_DEVICE", default=None)


@contextmanager
def without_weights(device: str | torch.device) -> Iterator[None]:
    """Load rewards without weights in this block, with the dtypes that they have on a device.

    New tensors must be fake in this block. Files of weights must be on this machine; only names and shapes
    are read from them. Configurations and tokenizers are loaded as usual.
    """
    token = _DEVICE.set(torch.device(device))
    try:
        yield
    finally:
        _DEVICE.reset(token)


def is_weightless() -> bool:
    """Return True within `without_weights`."""
    return _DEVICE.get() is not None


def default_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 for GPUs and float32 for the CPU, where float32 is faster."""
    planned = _DEVICE.get() or device
    return torch.float32 if planned.type == "cpu" else torch.bfloat16


def placed(module: AnyModule, device: str | torch.device, dtype: torch.dtype | None = None) -> AnyModule:
    """Return the module on this device, in this dtype; None keeps the dtype."""
    if not is_weightless():
        return module.to(device=device, dtype=dtype)
    for part in module.modules():  # fake tensors cannot be cast in place
        for name, tensor in part._parameters.items():
            if tensor is not None:
                part._parameters[name] = nn.Parameter(tensor.to(dtype or tensor.dtype), requires_grad=False)
    return module


def read_pickle(file: Path, tensors_of: Callable[[Any], Mapping[str, Tensor]] = dict, **options: Any) -> Any:
    """Return the tensors of a file of torch.save by name, on the CPU. No code in the file is run.

    Args:
        file: the file.
        tensors_of: function from the content of the file to its tensors.
        options: arguments of torch.load.

    Raises:
        the exceptions of torch.load and of `tensors_of`.
    """
    options |= {"map_location": "cpu", "weights_only": True}
    if not is_weightless():
        return tensors_of(torch.load(file, **options))
    with _disable_current_modes(), FakeTensorMode():  # its tensors would be counted, and stay alive
        tensors = tensors_of(torch.load(file, **options))
    return {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()}


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name, on the CPU.

    Raises:
        SafetensorError, OSError: the file cannot be read.
    """
    if not is_weightless():
        return load_file(file)
    with safe_open(file, "pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118, not a mapping
        return {
            name: torch.empty(one.get_shape(), dtype=_DTYPES[one.get_dtype()]) for name, one in slices.items()
        }
