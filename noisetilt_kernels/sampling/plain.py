"""Plain forms of states: dicts and lists of tensors, numbers and strings, which `torch.save` writes."""

import types
import typing
from dataclasses import is_dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

OnCPU = Annotated[Tensor, "cpu"]
"""Type of a field whose tensor is on the CPU, whatever the device of the model."""


def to_plain(value: Any) -> Any:
    """Return a copy of a value without classes of its own.

    Dataclasses and named tuples become dicts, tuples become lists. Tensors are copied to the CPU.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if is_dataclass(value) or hasattr(value, "_fields"):
        return {name: to_plain(getattr(value, name)) for name in _fields(type(value))}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: Any, plain: Any, device: torch.device) -> Any:
    """Return the value of a type from its plain form.

    Args:
        kind: type of the value: a dataclass, a named tuple, Tensor, or a list or optional value of one.
        plain: plain form, from `to_plain`. It is not changed.
        device: device of the tensors.

    Raises:
        TypeError: the type is not supported, such as a tuple.
    """
    if plain is None or kind is Any:
        return to_plain(plain)
    origin, items = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType) and len(items) == 2 and type(None) in items:
        return from_plain(items[items[0] is type(None)], plain, device)
    if kind is OnCPU:
        return plain.clone()
    if kind is Tensor:
        return plain.to(device, copy=True)
    if origin is list:
        return [from_plain(items[0], item, device) for item in plain]
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        return kind(**{name: from_plain(hint, plain[name], device) for name, hint in _fields(kind).items()})
    if kind in (int, float, str, bool) or (origin is dict and items[1] is Any):
        return to_plain(plain)
    raise TypeError(f"a state cannot have a field of type {kind}")


def _fields(kind: Any) -> dict[str, Any]:
    return {
        name: hint
        for name, hint in typing.get_type_hints(kind, include_extras=True).items()
        if typing.get_origin(hint) is not typing.ClassVar
    }
