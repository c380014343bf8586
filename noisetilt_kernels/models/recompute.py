"""Gradient checkpointing for networks that have none of their own."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


@contextmanager
def forwards_replaced(modules: Sequence[torch.nn.Module], call: Callable[..., Any]) -> Iterator[None]:
    """Within the block each module's forward is `call(forward, *arguments)`, with the one that it had."""
    # hooks of offloading are such attributes as well
    before = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = partial(call, module.forward)
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward
