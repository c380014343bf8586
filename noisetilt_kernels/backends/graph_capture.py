"""What CUDA graphs demand of tables: made before the capture, and kept as long as the graph may read them."""

from typing import Any

import torch

_captured: dict[int, Any] = {}


def check_not_capturing(device: torch.device) -> None:
    """Raises RuntimeError if a graph is being captured: tables cannot be made now."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "noisetilt: a CUDA graph is being captured, and the bounds are not on the device yet; "
            "call the operator once with such arguments before"
        )


def keep_if_capturing(tables: Any, device: torch.device) -> None:
    """If a graph is being captured, `tables` outlive their place in a cache."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured[id(tables)] = tables
